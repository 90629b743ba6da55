"""Checkpoints: a folder, at any URL, of config.json, safetensors weights and tokenizer.json with Hugging Face's names.

`open_checkpoint` reads headers only, then single tensors and ranges of rows; `load_model` takes all of it;
`save_checkpoint` writes one; `import_weights` gives somebody's own state dict these names.
"""

from tolbuild.checkpoint.fingerprint import Digests
from tolbuild.checkpoint.importing import Theirs, import_weights
from tolbuild.checkpoint.reader import Checkpoint, load_model, open_checkpoint
from tolbuild.checkpoint.writer import save_checkpoint

__all__ = ["Checkpoint", "Digests", "Theirs", "import_weights", "load_model", "open_checkpoint", "save_checkpoint"]
