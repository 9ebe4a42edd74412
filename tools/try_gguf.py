"""Compare a GGUF file in llama.cpp with the model folder it is made from: tokens of prompts, and ten greedy texts.

Usage: python tools/try_gguf.py FOLDER [--quant F16]      FOLDER is a merged model of Llama's architecture
Needs `pip install llama-cpp-python`, which compiles llama.cpp: it is no part of the development environment, and CI
does not run this. transformers computes in float32 here and llama.cpp keeps keys and values in float16, so a text may
part from the other where two tokens are almost equally likely.
"""
import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path

from llama_cpp import Llama, __version__

from amazon_ft.core import asset, chat
from amazon_ft.generate import generate
from amazon_ft.models import load_model, load_tokenizer, render
from amazon_ft.serve import write_gguf

N_TEXTS, N_PROMPTS = 10, 100
ODD = 'Ünïcødé ☃ 1234567 a  b   c\n\n\td — “x”'  # what titles of the sample lack


def main() -> int:
    "Compare, and fail when a prompt has other tokens."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a merged model")
    parser.add_argument("--quant", default="F16", help="F16 or Q8_0")
    args = parser.parse_args()
    rows = gzip.open(asset("sample/trn.json.gz"), "rt", encoding="utf-8")
    titles = [title for title in (json.loads(line)["title"] for line in rows) if title][:N_PROMPTS]
    with tempfile.TemporaryDirectory() as scratch:
        write_gguf(args.folder, Path(scratch) / "model.gguf", args.quant)
        llama = Llama(str(Path(scratch) / "model.gguf"), n_ctx=2048, verbose=False)
    tokenizer = load_tokenizer(args.folder)
    space = b" " * llama.metadata["tokenizer.chat_template"].startswith("{{ ' ' }}")
    prompts = [render(tokenizer, chat(title)) for title in [*titles, ODD]]
    same = sum(llama.tokenize(space + prompt.encode(), add_bos=False, special=True)
               == tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts)
    asked = [chat(title) for title in titles[:N_TEXTS]]
    ours = [found.text for found in generate(load_model(args.folder, "fp32"), tokenizer, asked, 60)]
    greedy = dict(temperature=0, repeat_penalty=1.0, max_tokens=60)
    theirs = [llama.create_chat_completion(messages=turns, **greedy)["choices"][0]["message"]["content"].strip()
              for turns in asked]
    print(f"llama-cpp-python {__version__}, {args.quant}: {same} of {len(prompts)} prompts in the same tokens, "
          f"{sum(map(str.__eq__, ours, theirs))} of {N_TEXTS} texts equal")
    return 0 if same == len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
