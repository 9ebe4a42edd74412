"""Training steps of QLoRA side by side on one GPU: the same model, the same rows, each way in a process of its own.

    python tools/bench_train.py --make MODEL --tokenizer TOKENIZER
    python tools/bench_train.py --model MODEL --ways ours,ours_t4,trl,trl_literal --out nbs/bench/train.json
    python tools/bench_train.py --model MODEL --ways unsloth,unsloth_literal --site SITE --out nbs/bench/train.json
    python tools/bench_train.py --model MODEL --cold WORKSPACE --out nbs/bench/train.json

MODEL is a randomly initialised Llama of TinyLlama-1.1B's shape. The rows are random tokens with the lengths of
trn.json's products: prompts of 68 tokens on average, descriptions of 123 in the median and 377 at the ninetieth
percentile, cut at 512. The learning rate is constant, so that the loss of the first ten steps can be compared whatever
the number of steps. SITE is a folder of packages that goes before the installed ones: Unsloth wants older ones.
`--cold` times the whole command amazon_ft_train, 600 steps without validation, on made-up products of those lengths.
`--out` adds to what the file holds. The alternatives wait for their host more than we do, and hosts differ: of their
runs the fastest stays, of ours the latest.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

SHAPE = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
             num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
             pad_token_id=2)
MODULES = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
SCRATCH = tempfile.mkdtemp()
T4_GIB = 15
COMPARED = 10 # the first steps, whose mean loss and gradient norm every way reports
PROFILED = 10 # further steps under the profiler, after those that are timed


class Way(NamedTuple):
    "How steps are taken."
    what: str
    steps: int = 60
    literal: bool = False  # 2 x 8 with gradient checkpointing, else 16 x 1
    four_bit: bool = True  # of the base; ours keeps four bits only in the T4's way
    dropout: float = 0.05
    free: bool = False  # without padding
    graphs: bool = False
    compiled: bool = False
    t4: bool = False


WAYS = {
    "trl_literal": Way("TRL, 2 x 8, checkpointing: the recipe literally", 20, literal=True),
    "trl": Way("TRL, 16 x 1, NF4"),
    "trl_bf16": Way("TRL, 16 x 1, bf16 base", four_bit=False),
    "trl_free": Way("TRL, 16 x 1, bf16 base, padding-free", four_bit=False, free=True),
    "unsloth_literal": Way("Unsloth, 2 x 8, its checkpointing", 20, literal=True),
    "unsloth": Way("Unsloth, 16 x 1, NF4"),
    "unsloth_bf16": Way("Unsloth, 16 x 1, bf16 base", four_bit=False),
    "unsloth_nodrop": Way("Unsloth, 16 x 1, NF4, no dropout", dropout=0.0),
    "unsloth_bf16_nodrop": Way("Unsloth, 16 x 1, bf16 base, no dropout", four_bit=False, dropout=0.0),
    "unsloth_free": Way("Unsloth, 16 x 1, NF4, no dropout, padding-free", dropout=0.0, free=True),
    "ours_eager": Way("ours, neither recorded nor compiled", four_bit=False),
    "ours_graphs": Way("ours, recorded, not compiled", 150, four_bit=False, graphs=True),
    "ours": Way("ours: packed, recorded, compiled", 500, four_bit=False, graphs=True, compiled=True),
    "ours_nodrop": Way("ours, no dropout", 500, four_bit=False, graphs=True, compiled=True, dropout=0.0),
    "ours_t4": Way("ours, a T4's way: NF4, fp16, 15 GiB", 120, t4=True),
}


def make(folder, tokenizer):
    "A randomly initialised model, and the tokenizer beside it."
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def make_rows(n, seed=0):
    "Rows of random tokens, with labels on the completion alone."
    import numpy as np
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        prompt = int(rng.integers(54, 83))
        completion = int(np.clip(rng.lognormal(np.log(123), .874), 8, 512 - prompt))
        ids = rng.integers(3, SHAPE["vocab_size"], prompt + completion).tolist()
        rows.append(dict(row=i, input_ids=ids, labels=[-100] * prompt + ids[prompt:]))
    return rows


def now():
    "Seconds, once the GPU has done all it was given."
    import torch
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clock(steps, warm):
    "A callback that times the steps after `warm`, and profiles those after `steps`."
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback
    class Clock(TrainerCallback):
        profiler = None
        def on_step_end(self, args, state, control, **kwargs):
            control.should_log |= state.global_step <= COMPARED
            if state.global_step == warm:
                self.start = now()
            if state.global_step == steps:
                self.end = now()
                self.peak = torch.cuda.max_memory_allocated() / 2**30
                if args.max_steps > steps:
                    self.profiler = profile(activities=[ProfilerActivity.CUDA], acc_events=True)
                    self.profiler.__enter__()
        def on_train_end(self, args, state, control, **kwargs):
            if self.profiler:
                now()
                self.profiler.__exit__(None, None, None)
    return Clock()


KERNELS = {"attention": ("flash",), "matrix products": ("nvjet", "gemm", "cutlass", "splitK"),
           "compiled small operations": ("triton",), "loss": ("SoftMax", "nll_loss", "index"),
           "optimiser and clipping": ("multi_tensor",), "all-reduce, and waiting for it": ("nccl",)}

def kinds(profiler, steps):
    "Milliseconds a step by kind of kernel, as the profiler saw them."
    found = dict.fromkeys([*KERNELS, "other"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KERNELS.items() if any(name in event.key for name in names)), "other")
        found[kind] += event.self_device_time_total / 1000 / steps
    return found


def alternative(way, model, steps, settings):
    "A trainer of TRL's, patched by Unsloth if that is the way."
    unsloth = way.startswith("unsloth")
    if unsloth:
        from unsloth import FastLanguageModel
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer
    way = WAYS[way]
    rows = [dict(input_ids=row["input_ids"], completion_mask=[int(label != -100) for label in row["labels"]])
            for row in make_rows(16 * steps)]
    arguments = {}
    if unsloth:
        base, tokenizer = FastLanguageModel.from_pretrained(model, max_seq_length=512, dtype=torch.bfloat16,
                                                            load_in_4bit=way.four_bit)
        base = FastLanguageModel.get_peft_model(base, r=32, lora_alpha=64, lora_dropout=way.dropout,
                                                target_modules=MODULES,
                                                use_gradient_checkpointing="unsloth" if way.literal else False)
    else:
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                 bnb_4bit_compute_dtype=torch.bfloat16)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0},
                                                    quantization_config=nf4 if way.four_bit else None)
        tokenizer = AutoTokenizer.from_pretrained(model)
        arguments = dict(peft_config=LoraConfig(r=32, lora_alpha=64, lora_dropout=way.dropout, target_modules=MODULES,
                                                task_type="CAUSAL_LM"))
    base.config.use_cache = False
    config = SFTConfig(
        per_device_train_batch_size=2 if way.literal else 16, gradient_accumulation_steps=8 if way.literal else 1,
        gradient_checkpointing=way.literal, bf16=True, max_length=None if way.free else 512,
        padding_free=way.free, completion_only_loss=True, optim="adamw_torch_fused", save_strategy="no",
        **settings)
    return SFTTrainer(model=base, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                      **arguments)


def ours(way, model, steps, settings):
    "Our trainer, told how to execute."
    import torch
    from datasets import Dataset
    from torch.nn.attention import sdpa_kernel
    from amazon_ft.models import load_model, load_tokenizer
    from amazon_ft.step import Execution, choose_execution
    from amazon_ft.train import build_trainer, lora_config, sft_config
    way = WAYS[way]
    precision = "fp16" if way.t4 else "bf16"
    if way.t4:
        torch.cuda.set_per_process_memory_fraction(T4_GIB * 2**30 / torch.cuda.mem_get_info()[1])
    base = load_model(model, precision, four_bit=True)
    execution = Execution(False, 16 * 512, way.graphs, way.compiled)
    if way.t4:
        patch("torch.cuda.get_device_capability", return_value=(7, 5)).start()
        patch("torch.nn.attention.sdpa_kernel", lambda backends: sdpa_kernel(backends[1:])).start() # no flash on a T4
        free = T4_GIB * 2**30 - torch.cuda.memory_allocated()
        with patch("torch.cuda.mem_get_info", return_value=(free, T4_GIB * 2**30)):
            execution = choose_execution(base, precision, steps, four_bit=True)
    config = sft_config(SCRATCH, precision, steps, settings["learning_rate"], save_steps=0, seed=0)
    for name, value in settings.items():
        setattr(config, name, value)
    rows = Dataset.from_list(make_rows(16 * steps))
    trainer = build_trainer(base if way.t4 else base.dequantize(), load_tokenizer(model), rows, rows.take(16),
                            lora_config(dropout=way.dropout), config, execution)
    print(execution, flush=True)
    return trainer


def measure(way, model):
    "Run one way; prints one line of JSON."
    import torch
    steps = WAYS[way].steps
    warm = 8 if steps < 100 else steps // 2
    total = steps + PROFILED * (way == "ours")
    settings = dict(output_dir=SCRATCH, max_steps=total, learning_rate=1e-4, lr_scheduler_type="constant",
                    warmup_steps=0, logging_steps=25, report_to="none", disable_tqdm=True, seed=0,
                    train_sampling_strategy="sequential")
    began = time.perf_counter()
    trainer = (ours if way.startswith("ours") else alternative)(way, model, total, settings)
    counts, collator = [], trainer.data_collator
    def counted(examples):
        counts.append(sum(len(example["input_ids"]) for example in examples))
        return collator(examples)
    trainer.data_collator = counted
    timer = clock(steps, warm)
    trainer.add_callback(timer)
    torch.cuda.reset_peak_memory_stats()
    built = time.perf_counter()
    trainer.train()
    a_step = 8 if WAYS[way].literal else 1
    real = sum(counts[warm * a_step:steps * a_step])
    first = [log for log in trainer.state.log_history if log.get("step", 99) <= COMPARED and "loss" in log]
    mean = {name: sum(float(log[name]) for log in first) / COMPARED for name in ("loss", "grad_norm")}
    result = dict(
        way=way, what=WAYS[way].what, steps=steps - warm, seconds_a_step=(timer.end - timer.start) / (steps - warm),
        tokens_per_s=real / (timer.end - timer.start), start_s=built - began,
        warm_up_s=timer.start - built, **mean,
        peak_gib=timer.peak, reserved_gib=torch.cuda.max_memory_reserved() / 2**30,
        hardware=torch.cuda.get_device_name(), versions=_versions(way))
    if way.startswith("ours"):
        logged = [log["tokens_per_s"] for log in trainer.state.log_history
                  if log.get("step", 0) > warm and "loss" in log]
        result |= dict(logged_tokens_per_s=logged, shapes=len(trainer.step.recordings), budget=trainer.step.budget,
                       dtypes=sorted({str(tensor.dtype) for tensor in trainer.model.state_dict().values()}))
    if timer.profiler:
        result["profile_ms"] = kinds(timer.profiler, PROFILED)
    print("RESULT " + json.dumps(result), flush=True)


def _versions(way):
    names = ["torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets"]
    return {name: version(name) for name in names + ["unsloth"] * way.startswith("unsloth")}


def cold(model, root, out):
    "Prepare invented products of trn.json's lengths, then time the training command as a process of its own."
    import random
    from transformers import AutoTokenizer
    from amazon_ft.data import prepare
    tokenizer, rng = AutoTokenizer.from_pretrained(model), random.Random(0)
    words = sorted({tokenizer.decode([i]).strip().lower() for i in range(3000, 30000)})
    words = [word for word in words if word.isascii() and word.isalpha() and len(word) > 3]
    def text(tokens):
        return " ".join(rng.choices(words, k=max(2, round(tokens / 1.47))))
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "made_up.jsonl", "w") as file:
        for i in range(11_500):
            title, content = text(rng.uniform(5, 28)), text(rng.lognormvariate(4.8122, .874))
            print(json.dumps(dict(uid=str(i), title=title, content=content)), file=file)
    prepare(str(root / "made_up.jsonl"), n_train=10_000, n_valid=100, n_test=1_000, root=str(root))
    command = [sys.executable, "-c", "from amazon_ft.train import amazon_ft_train; amazon_ft_train()",
               "--base", str(model), "--root", str(root), "--max_steps", "600", "--save_steps", "0"]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    from amazon_ft.artefacts import read_manifest
    from amazon_ft.core import paths
    where = paths(str(model), root)
    log = (where.run / "log.csv").read_text().splitlines()
    result = dict(what="amazon_ft_train, 600 steps, cold start to saved adapter", seconds=seconds,
                  log=[log[0], *log[-2:]], hardware=read_manifest(where.adapter, "train", "")["hardware"],
                  versions=_versions("ours"))
    print(json.dumps(result), flush=True)
    if out:
        results = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps(results | {"cold": result}, indent=1) + "\n")


def main():
    "Make the model, or measure ways one after the other."
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, help="write a randomly initialised model here")
    parser.add_argument("--tokenizer", type=Path, help="folder of TinyLlama's tokenizer, for --make")
    parser.add_argument("--model", type=Path, help="the model's folder")
    parser.add_argument("--ways", default=",".join(WAYS), help="which ways, by comma")
    parser.add_argument("--site", help="folder of packages for these ways")
    parser.add_argument("--cold", type=Path, help="time the recipe's 600 steps from a cold start, in this workspace")
    parser.add_argument("--one", action="store_true", help="measure in this very process")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    args = parser.parse_args()
    if args.make:
        return make(args.make, args.tokenizer)
    if args.cold:
        return cold(args.model, args.cold, args.out)
    if args.one:
        return measure(args.ways, str(args.model))
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    root = str(Path(__file__).resolve().parents[1])
    for way in args.ways.split(","):
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        site = args.site or os.environ.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [site, root]))
        command = [sys.executable, __file__, "--model", str(args.model), "--ways", way, "--one"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            print(f"{way}: failed\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}", flush=True)
            continue
        result = json.loads(found[0].removeprefix("RESULT "))
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items() if k != "versions"}
        print(json.dumps(shown), flush=True)
        if way.startswith("ours") or result["tokens_per_s"] > results.get(way, {"tokens_per_s": 0})["tokens_per_s"]:
            results[way] = result
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
