"""Whether a graph can run on a model and a batch, decided before anything is computed."""

import functools
from collections.abc import Callable, Iterable, Mapping

from model_adapters import Adapter
from model_adapters.batch import Positions
from model_adapters.hooks import find_site
from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.nodes import (
    ARITHMETIC,
    COMPARISONS,
    HEAD_SITES,
    LAYER_SITES,
    MODALITIES,
    MODEL_SITES,
    SPANS,
    Arithmetic,
    Compare,
    Constant,
    IsModality,
    Mean,
    Node,
    Project,
    Read,
    Steps,
    walk,
)
from regap_interp.graph.places import label, place, span_mask
from regap_interp.graph.shapes import NUMBER, Shape, name_of, shape_of, site_feature
from regap_interp.graph.values import reads_below

_SITES = (*LAYER_SITES, *MODEL_SITES)


def check(edits: Iterable[Edit], outputs: dict[str, Node], adapter: Adapter) -> None:
    """Refuse a graph that cannot run on a model.

    Raises:
        GraphError: naming the node or edit, what was found, and what to do.
    """
    main = tuple(edits)
    for name in outputs:
        if not isinstance(name, str) or not name:
            raise GraphError(f"outputs are named by strings, got {name!r}")
    roots = [*outputs.values(), *(one for edit in main for one in edit.inputs())]
    nodes = list(walk(roots))
    # Computed from the weights, so once for all constants that ask for it.
    fingerprint = functools.cache(lambda: adapter.fingerprint)
    shapes: dict[Node, Shape] = {}
    for node in nodes:
        _check_node(node, adapter, fingerprint)
        shape_of(node, adapter, shapes)
    for edit in main:
        _check_edit(edit, adapter, shapes, fingerprint)
        _check_order(edit, adapter)
    for read in (node for node in nodes if isinstance(node, Read) and node.under is not None):
        _check_branch(read, adapter, shapes, fingerprint)
    for name, output in outputs.items():
        phases = {read.phase for read in reads_below(output)}
        if phases == {"prefill", "decode"}:
            raise GraphError(f"output {name!r} mixes reads of the prefill and of decoding")


def check_batch(edits: Iterable[Edit], outputs: dict[str, Node], prompt: Positions) -> None:
    """Refuse a graph that cannot run on a batch.

    Raises:
        GraphError: as `check` does.
    """
    main = tuple(edits)
    check_rows(main, outputs, len(prompt))
    for node in walk([*outputs.values(), *(one for edit in main for one in edit.inputs())]):
        prefill = isinstance(node, Read) and node.phase == "prefill"
        if isinstance(node, Read) and prefill and not span_mask(node.at, prompt).any():
            raise GraphError(
                f"{name_of(node)} at={node.at!r}: no row of the batch has such positions; its "
                f"modalities are {', '.join(sorted(set(prompt.modalities)))}"
            )
    for edit in main:
        if edit.phase != "decode" and isinstance(edit.at, tuple):
            span_mask(edit.at, prompt)


def check_rows(edits: Iterable[Edit], outputs: Mapping[str, Node], rows: int) -> None:
    """Refuse states of another run that has other rows.

    Raises:
        GraphError: telling both numbers.
    """
    for node in walk([*outputs.values(), *(one for edit in edits for one in edit.inputs())]):
        if isinstance(node, Constant) and node.value.ndim > 1:
            held = node.value.shape[0]
            if held not in (1, rows):
                raise GraphError(
                    f"a constant holds {held} rows, the batch {rows}; states of another run need "
                    "the same rows, in the same order"
                )


def _check_node(node: Node, adapter: Adapter, fingerprint: Callable[[], str]) -> None:
    if isinstance(node, Read):
        what = f"read {label(str(node.site), node.layer)}"
        _check_site(what, node.site, node.layer, node.head, adapter)
        _check_rule(what, node.at, node.phase, adapter)
        if node.under is not None and node.phase == "decode":
            raise GraphError(f"{what}: a pass of its own (under=) ends with the prefill")
    if isinstance(node, Constant):
        if not node.value.is_floating_point():
            raise GraphError(f"a constant of {node.value.dtype}; expected floating point")
        if not node.value.isfinite().all():
            raise GraphError("a constant is not finite; check the pass that it was made from")
    if isinstance(node, Arithmetic) and node.op not in ARITHMETIC:
        raise GraphError(f"no arithmetic {node.op!r}; there are {', '.join(ARITHMETIC)}")
    if isinstance(node, Compare) and node.op not in COMPARISONS:
        raise GraphError(f"no comparison {node.op!r}; there are {', '.join(COMPARISONS)}")
    if isinstance(node, IsModality) and node.modality not in MODALITIES:
        raise GraphError(f"no modality {node.modality!r}; there are {', '.join(MODALITIES)}")
    if isinstance(node, Project):
        if not node.vector.value.any():
            raise GraphError(f"projection of {name_of(node.of)} on a direction that is zero")
        for read in _states_below(node.of):
            _check_origin(node.vector, f"projection of {name_of(read)}", read, adapter, fingerprint)


def _check_site(
    what: str, site: str, layer: int | None, head: int | None, adapter: Adapter
) -> None:
    if site not in _SITES:
        raise GraphError(f"{what}: no site {site!r}; there are {', '.join(_SITES)}")
    if site in MODEL_SITES:
        if layer is not None:
            raise GraphError(f"{what}: {site} has no layers; leave layer out")
    elif layer is None or isinstance(layer, bool) or not isinstance(layer, int):
        raise GraphError(f"{what}: {site} needs a layer, 0 to {adapter.n_layers - 1}")
    elif not 0 <= layer < adapter.n_layers:
        raise GraphError(
            f"{what}: {adapter.model_id} has layers 0 to {adapter.n_layers - 1}"
            + (f"; the last is {adapter.n_layers - 1}" if layer < 0 else "")
        )
    obstacle = find_site(adapter, site, layer).obstacle
    if obstacle is not None:
        raise GraphError(f"{what}: {obstacle}")
    if head is not None:
        if site not in HEAD_SITES:
            raise GraphError(f"{what}: {site} has no heads; those of z and result do")
        n_heads, _ = adapter.heads(layer or 0)
        if not 0 <= head < n_heads:
            raise GraphError(f"{what}: head {head}; there are heads 0 to {n_heads - 1}")


def _check_rule(what: str, at: object, phase: str, adapter: Adapter) -> None:
    if phase not in ("prefill", "decode", "both"):
        raise GraphError(f'{what}: phase is "prefill", "decode" or "both", got {phase!r}')
    if isinstance(at, Steps):
        if phase != "decode":
            raise GraphError(f"{what}: {at} are steps of decoding, its phase is {phase!r}")
        if at.start < 1 or (at.stop is not None and at.stop <= at.start):
            raise GraphError(f"{what}: {at}; steps count from 1, stop is beyond start")
        return
    if isinstance(at, tuple):
        if not at or not all(isinstance(i, int) for i in at) or len(set(at)) != len(at):
            raise GraphError(f"{what}: positions {at!r}; give different whole numbers")
    elif at not in SPANS:
        raise GraphError(
            f"{what}: no position rule {at!r}; there are {', '.join(SPANS)}, indices, and Steps"
        )
    if at in ("image", "audio", "video") and at not in adapter.media:
        raise GraphError(f"{what}: {adapter.model_id} takes no {at}")
    if phase != "prefill" and at not in ("last", "prompt"):
        raise GraphError(
            f"{what}: a pass of decoding holds one new token, which at={at!r} does not name; leave "
            "`at` out, or use Steps"
        )


def _check_origin(
    constant: Constant,
    what: str,
    where: Read | Edit,
    adapter: Adapter,
    fingerprint: Callable[[], str],
) -> None:
    origin = constant.origin
    if origin is None:
        return
    if origin.model != fingerprint():
        raise GraphError(
            f"{what}: the direction was made on another model (fingerprint {origin.model[:12]}, "
            f"{adapter.model_id} has {fingerprint()[:12]}); measure it on this one"
        )
    if (origin.site, origin.layer) != (where.site, where.layer):
        raise GraphError(
            f"{what}: the direction was made at {label(origin.site, origin.layer)}, it is used at "
            f"{label(where.site, where.layer)}; take the one of that site, or give its bare "
            "tensor (direction.vector) if you mean it"
        )


def _states_below(node: Node) -> list[Read]:
    """The reads whose states a projection measures."""
    match node:
        case Read():
            return [node]
        case Mean() | Arithmetic():
            return [read for one in node.inputs() for read in _states_below(one)]
    return []


def _check_edit(
    edit: Edit, adapter: Adapter, shapes: dict[Node, Shape], fingerprint: Callable[[], str]
) -> None:
    what = f"{edit.op} {label(str(edit.site), edit.layer)}"
    _check_site(what, edit.site, edit.layer, edit.head, adapter)
    _check_rule(what, edit.at, edit.phase, adapter)
    strength = shape_of(edit.strength, adapter, shapes)
    if strength != NUMBER:
        raise GraphError(f"{what}: its strength is {strength}; expected one number a row")
    if edit.to is not None and shape_of(edit.to, adapter, shapes) != NUMBER:
        raise GraphError(f"{what}: `to` is {shapes[edit.to]}; expected one number a row")
    feature = site_feature(adapter, edit.site, edit.layer, edit.head)
    value = shape_of(edit.value, adapter, shapes)
    if len(feature) > 1 and not (edit.op == "replace" and isinstance(edit.value, Read)):
        raise GraphError(f"{what}: say which head, 0 to {feature[0] - 1}: head=")
    if value.feature != feature:
        raise GraphError(
            f"{what}: its value is {value}, the site is {feature[-1]} wide; take a direction or "
            "states of this model and site"
        )
    if value.several and edit.phase != "prefill":
        raise GraphError(
            f"{what}: its value has several positions, a pass of decoding holds one; take the mean"
        )
    if edit.op in ("remove", "set_coordinate"):
        if not isinstance(edit.value, Constant) or edit.value.value.ndim != 1:
            raise GraphError(f"{what}: needs one fixed direction [{feature[-1]}]")
        if not edit.value.value.any():
            raise GraphError(f"{what}: the direction is zero")
    if isinstance(edit.value, Constant):
        _check_origin(edit.value, what, edit, adapter, fingerprint)


def _check_order(edit: Edit, adapter: Adapter) -> None:
    """What decides an edit must be known when the edit is made."""
    what = f"{edit.op} {label(edit.site, edit.layer)}"
    here = place(edit.site, edit.layer, adapter.n_layers)
    for node in edit.inputs():
        for read in reads_below(node):
            if read.phase == "decode":
                if edit.phase != "decode":
                    raise GraphError(
                        f"{what}: {name_of(read)} is read in decoding, so it can decide edits of "
                        'decoding only: phase="decode"'
                    )
            elif read.under is not None or edit.phase == "decode":
                continue
            if place(read.site, read.layer, adapter.n_layers) > here:
                raise GraphError(
                    f"{what}: {name_of(read)} comes later in the same pass, so it cannot decide "
                    "the edit. Say in which pass it is read: under=() for the bare model, or "
                    "under=[edit] for a probe with that edit"
                )


def _check_branch(
    read: Read, adapter: Adapter, shapes: dict[Node, Shape], fingerprint: Callable[[], str]
) -> None:
    for edit in read.under or ():
        what = f"{edit.op} {label(str(edit.site), edit.layer)}, under which {name_of(read)} is read"
        _check_edit(edit, adapter, shapes, fingerprint)
        if edit.phase != "prefill":
            raise GraphError(f'{what}: a probe ends with the prefill, so its phase is "prefill"')
        for node in edit.inputs():
            for inner in reads_below(node):
                if inner.under is None:
                    raise GraphError(
                        f"{what}: it rests on {name_of(inner)} of the pass that the graph edits; "
                        "say in which pass that is read: under=() or under=[edit]"
                    )
