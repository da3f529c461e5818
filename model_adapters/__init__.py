"""One interface to the insides of multimodal language models, on top of nnsight."""

from model_adapters.adapter import Adapter as Adapter
from model_adapters.batch import AudioSpan as AudioSpan
from model_adapters.batch import Batch as Batch
from model_adapters.batch import ImageSpan as ImageSpan
from model_adapters.batch import Role as Role
from model_adapters.batch import VideoSpan as VideoSpan
from model_adapters.call import Call as Call
from model_adapters.encode import Chat as Chat
from model_adapters.errors import AdapterError as AdapterError
from model_adapters.errors import InputError as InputError
from model_adapters.errors import LayerError as LayerError
from model_adapters.errors import LoadError as LoadError
from model_adapters.errors import SelfCheckError as SelfCheckError
from model_adapters.errors import SiteError as SiteError
from model_adapters.families.family import Family as Family
from model_adapters.generation import Generation as Generation
from model_adapters.hooks import HookHandle as HookHandle
from model_adapters.load import load as load
from model_adapters.receipt import Receipt as Receipt
from model_adapters.resume import LayerCalls as LayerCalls
from model_adapters.resume import RowCache as RowCache
from model_adapters.resume import cache_obstacle as cache_obstacle
from model_adapters.resume import resume_obstacle as resume_obstacle
from model_adapters.tracer import Step as Step
