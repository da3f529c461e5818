"""The shipped model organism: a made-up world, its renderer and processor, training, weights."""
