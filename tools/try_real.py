"""Take a real chat model through the stages on a CPU, briefly: two steps, a merge, four titles.

Usage: python tools/try_real.py [--bin FOLDER]      FOLDER holds the console scripts, by default this Python's
The model is SmolLM2-135M-Instruct out of a package (tools/real_base.py): a vocabulary of 49,152, ChatML's template,
tied embeddings, thirty layers. Two steps change little, so the texts are not judged. The check is that each stage takes
such a model, that its answers end at the template's own end of turn, and that training changed it.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from real_base import END, real_base

TITLES = ("Bamboo Cutting Board", "Steel Kettle, 1.7 l", "Wool Socks, grey", "A Field Guide to Mosses")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--wheel", type=Path, help="the package, if it lies here already")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        folder, start = Path(folder), time.perf_counter()
        def run(name, *options):
            done = subprocess.run([args.bin / f"amazon_ft_{name}", *options, "--root", str(folder / "runs")],
                                  cwd=folder, text=True, capture_output=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
        base = str(folder / "SmolLM2-135M-Instruct")
        real_base(base, args.wheel)
        run("prepare", "--source", "sample", "--n_train", "100", "--n_valid", "8", "--n_test", "4")
        run("train", "--base", base, "--max_steps", "2", "--batch_size", "2", "--max_length", "160",
            "--save_steps", "0", "--learning_rate", "1e-3")
        run("merge", "--decoding", "greedy")
        merged, = (folder / "runs" / "outputs").glob("*_merged_fp16")
        settings = json.loads((merged / "generation_config.json").read_text())
        from transformers import AutoTokenizer
        end = AutoTokenizer.from_pretrained(merged).convert_tokens_to_ids(END)
        assert settings["eos_token_id"] == end, f"answers end at {settings['eos_token_id']}, not at {END}, {end}"
        effect = json.loads((merged / "amazon_ft.json").read_text())["effect"]
        assert effect["kl"] > 1e-4, effect
        catalogue = folder / "catalogue.csv"
        catalogue.write_text("title\n" + "".join(f'"{title}"\n' for title in TITLES))
        run("generate", "--source", str(catalogue), "--out", str(folder / "described.csv"), "--max_new_tokens", "24")
        described = (folder / "described.csv").read_text()
        assert all(title in described for title in TITLES) and len(described) > 400, described
    print("a real base: prepared, trained, merged, asked")


if __name__ == "__main__":
    main()
