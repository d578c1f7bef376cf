"""Writes the configs in transformers 5's style from those in the published style.

    python -m venv venv && venv/bin/pip install transformers==5.17.0
    venv/bin/python testdata/configs/make.py

Needs no PyTorch. What `save_pretrained` makes of a published config is the oracle for reading both styles.
"""

import pathlib
import tempfile

import transformers
from transformers import Llama4Config

HERE = pathlib.Path(__file__).parent


def save(config, name):
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        (HERE / name).write_text((pathlib.Path(folder) / "config.json").read_text())


assert transformers.__version__ == "5.17.0", transformers.__version__
for model in ("scout", "maverick"):
    config = Llama4Config.from_json_file(HERE / f"{model}-instruct.json")
    save(config, f"{model}-transformers5.json")
    text = config.text_config
    text.architectures = ["Llama4ForCausalLM"]
    save(text, f"{model}-text-only-transformers5.json")
save(Llama4Config(text_config={}, vision_config={}), "defaults-transformers5.json")
