"""How fast texts are generated on a GPU: ours beside transformers' own ways, and how often the two agree.

    python tools/bench_generate.py --tokenizer FOLDER --what ours,theirs,profile --out nbs/bench/generate.json
    python tools/bench_generate.py --real FOLDER --out nbs/bench/generate.json
    CUDA_VISIBLE_DEVICES= taskset -c 0,1 python tools/bench_generate.py --tokenizer FOLDER --what cpu \
        --out nbs/bench/generate.json

Run from the repository's root with PYTHONPATH set to it, on a machine with a GPU; nothing is downloaded. Speed: a model
of TinyLlama-1.1B's shape with random weights in float16 (on a CPU SmolLM2-135M's, in float32), made-up titles, and
drawn lengths in place of real ones, since such a model never stops by itself. Agreement: a real chat model's folder.
"""
import json
import random
import signal
from argparse import ArgumentParser
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from amazon_ft import generate as engine
from amazon_ft import slots as decoding_step
from amazon_ft.artefacts import hardware, versions
from amazon_ft.core import chat
from amazon_ft.generate import batch_rows, completions, generate, stream_tokens
from amazon_ft.models import token_ids
from amazon_ft.rules import generation_config
from amazon_ft.slots import Slots, triton_attention

CAP = 256
WORDS = ("steel lamp garden small blue wooden kettle classic travel set of two cotton shirt premium edition the art "
         "guide kids book vintage red phone case").split()


def make_chats(n: int) -> list:
    "Chats about made-up titles of 4 to 22 words."
    rng = random.Random(0)
    return [chat(" ".join(rng.choices(WORDS, k=rng.randint(4, 22)))) for _ in range(n)]


def real_lengths(n: int) -> list:
    "Lognormal lengths of 20 to 256 tokens, as those of real descriptions under the cap: mean 130."
    return [min(CAP, max(20, int(random.Random(i).lognormvariate(4.75, 0.75)))) for i in range(n)]


def random_model(**changes):
    "TinyLlama's shape, random weights, float16."
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    shape = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                 num_key_value_heads=4, vocab_size=32_000, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
                 pad_token_id=2)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()
    model = model.half() if model.device.type == "cuda" else model
    model.generation_config.eos_token_id = None
    return model


def now() -> float:
    "Seconds, when the GPU, if there is one, has nothing left to do."
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def timed(found: dict, name: str, work, limit: int = 150):
    "Run `work`, which returns a number of new tokens; add tokens/s to `found`."
    def late(*_):
        raise TimeoutError(f"stopped after {limit} s")
    signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = now()
    try:
        tokens = work()
        seconds = now() - start
        found[name] = dict(new_tokens=tokens, seconds=round(seconds, 2), tokens_per_s=round(tokens / seconds),
                           peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1))
    except Exception as error:
        found[name] = dict(failed=f"{type(error).__name__}: {error}"[:200])
    signal.alarm(0)
    print(name, found[name], flush=True)
    torch.cuda.empty_cache()


def describe(model, tokenizer, chats: list, caps: list, slots: int = None, usage: dict = None) -> int:
    "As `generate` works, with a cap a row; returns the number of new tokens."
    prompts, rules, tokens = token_ids(tokenizer, chats), generation_config(tokenizer, CAP), 0
    for ended in completions(model, prompts, rules, slots or batch_rows(), caps=caps, usage=usage):
        tokenizer.batch_decode(list(ended.values()), skip_special_tokens=True)
        tokens += sum(map(len, ended.values()))
    return tokens


@contextmanager
def like_a_t4():
    "float16, no flash or cuDNN attention, no kernel of our own, 15 GiB."
    kernels = lambda: sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(15 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    with (patch.object(engine, "attention_kernel", lambda *_: None),
          patch.object(decoding_step, "any_shape", kernels), kernels()):
        yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def batches(model, tokenizer, prompts: list, rows: int, cap: int = CAP, **kwargs) -> int:
    "transformers' `generate` in left-padded batches, longest first; returns the number of new tokens."
    prompts = sorted(prompts, key=len, reverse=True)
    for start in range(0, len(prompts), rows):
        encoded = tokenizer.pad({"input_ids": prompts[start:start + rows]}, padding_side="left", return_tensors="pt")
        model.generate(**encoded.to(model.device), max_new_tokens=cap, do_sample=False,
                       pad_token_id=tokenizer.pad_token_id, **kwargs)
    return len(prompts) * cap


def ours(model, tokenizer, found: dict):
    "Our ways, from call to result."
    chats = make_chats(10_000)
    def all_256():
        return sum(p.n_tokens for p in generate(model, tokenizer, chats[:1024], CAP))
    timed(found, "ours, 1,024 x 256, first call of the process", all_256)
    timed(found, "ours, 1,024 x 256, again", all_256)
    for slots in (1024, 512):
        usage, name = {}, f"ours, 10,000 real lengths, {slots} slots"
        timed(found, name, lambda: describe(model, tokenizer, chats, real_lengths(10_000), slots, usage))
        if usage:
            found[name]["busy"] = round(found[name]["new_tokens"] / usage["steps"] / usage["slots"], 3)
    with like_a_t4():
        timed(found, "ours, like a T4, 1,024 x 256", all_256)
    for name in ("first", "again"):
        timed(found, f"ours, one title at a time, {name}",
              lambda: sum(len(list(stream_tokens(model, tokenizer, asked, CAP))) for asked in chats[:4]))
    drawn = generation_config(tokenizer, CAP, 0.7, 0.9)
    timed(found, "ours, 1,024 x 256, temperature 0.7 and top-p 0.9",
          lambda: sum(p.n_tokens for p in generate(model, tokenizer, chats[:1024], CAP, decoding=drawn)))
    careful = generation_config(tokenizer, CAP, repetition_penalty=1.1, no_repeat_ngram_size=4)
    timed(found, "ours, 1,024 x 256, penalty 1.1 and no repeated 4-grams",
          lambda: sum(p.n_tokens for p in generate(model, tokenizer, chats[:1024], CAP, decoding=careful)))


def theirs(model, tokenizer, found: dict):
    "transformers' ways: batches, static cache with its own compilation, flex attention, continuous batching."
    prompts = token_ids(tokenizer, make_chats(1024))
    batches(model, tokenizer, prompts[:8], 8, 4)
    timed(found, "transformers, batches of 512", lambda: batches(model, tokenizer, prompts[:512], 512))
    with like_a_t4():
        timed(found, "transformers, like a T4, batches of 512", lambda: batches(model, tokenizer, prompts[:512], 512))
    timed(found, "transformers, one title at a time", lambda: batches(model, tokenizer, prompts[:2], 1))
    from transformers import GenerationConfig
    short = GenerationConfig(max_new_tokens=128, do_sample=False, pad_token_id=2, eos_token_id=31_999)
    timed(found, "transformers, generate_batch, 256 x 128",
          lambda: sum(len(r.generated_tokens) for r in model.generate_batch(prompts[:256], short).values()), 90)
    torch.cuda.empty_cache()
    for name in ("first", "again"):
        timed(found, f"transformers, static cache, compiled, 512 rows, {name}",
              lambda: batches(model, tokenizer, prompts[:512], 512, cache_implementation="static"))
    model.set_attn_implementation("flex_attention")
    for name in ("first", "again"):
        timed(found, f"transformers, static cache, flex attention, 512 x 64, {name}",
              lambda: batches(model, tokenizer, prompts[:512], 512, 64, cache_implementation="static"), 80)


def on_cpu(model, tokenizer, found: dict, n: int = 96):
    "Slots and left-padded batches of the same size on a CPU, in turn; a batch runs until its longest text ends."
    rows, chats, caps = batch_rows(), make_chats(n), real_lengths(n)
    prompts = token_ids(tokenizer, chats)
    longest_first = sorted(range(n), key=lambda i: -len(prompts[i]))
    def padded():
        for start in range(0, n, rows):
            batch = longest_first[start:start + rows]
            batches(model, tokenizer, [prompts[i] for i in batch], rows, max(caps[i] for i in batch))
        return sum(caps)
    for turn in ("first", "again"):
        timed(found, f"CPU, slots, {n} real lengths, {turn}", lambda: describe(model, tokenizer, chats, caps), 600)
        timed(found, f"CPU, left-padded batches, {n} real lengths, {turn}", padded, 600)


def profiled(model, tokenizer, found: dict):
    "Milliseconds of a recorded step, and what they are spent on."
    from torch.profiler import ProfilerActivity, profile
    rules = generation_config(tokenizer, CAP)
    for slots, kernel in ((1024, None), (1024, triton_attention()), (512, None), (512, triton_attention()), (1, None)):
        times = {}
        state = Slots(model, rules, slots, 384, kernel)
        with torch.inference_mode():
            for reach in (128, 256, 384):
                state.lengths.copy_(torch.randint(60, reach - 20, (slots,)))
                state.ends.fill_(380)
                state.active.fill_(True)
                for _ in range(3):
                    state.recorded(reach)
                start = now()
                for _ in range(10):
                    state.recordings[reach].replay()
                times[reach] = round((now() - start) * 100, 2)
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as log:
                state.recordings[256].replay()
                torch.cuda.synchronize()
        shares = {"matrix products": 0, "attention": 0, "rest": 0}
        for event in log.key_averages():
            key = event.key.lower()
            kind = ("attention" if any(word in key for word in ("attention", "fmha", "flash", "sdpa")) else
                    "matrix products" if any(word in key for word in ("nvjet", "gemm", "cutlass", "splitk")) else
                    "rest")
            shares[kind] += event.self_device_time_total / 1000
        name = f"step of {slots} rows, {'kernel' if kernel else 'SDPA'}"
        found[name] = dict(ms_by_reach=times, at_256={kind: round(ms, 2) for kind, ms in shares.items()})
        print(name, found[name], flush=True)
        del state


def agreement(folder: Path, found: dict, n: int = 128, cap: int = 96):
    "Ours and `generate`, both in float16, on a real model; its own float32 says how likely each text is."
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    load = lambda dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to("cuda").eval()
    chats = make_chats(n)
    prompts = token_ids(tokenizer, chats)
    rules = generation_config(tokenizer, cap)
    def batched(model, rows):
        texts = {}
        for start in range(0, n, rows):
            encoded = tokenizer.pad({"input_ids": prompts[start:start + rows]}, padding_side="left",
                                    return_tensors="pt")
            width = encoded.input_ids.shape[1]
            written = model.generate(**encoded.to("cuda"), generation_config=rules)[:, width:].tolist()
            for i, text in enumerate(written, start):
                texts[i] = text[:text.index(rules.eos_token_id) + 1] if rules.eos_token_id in text else text
        return texts
    def by_slots(model, slots):
        return {i: text for ended in completions(model, prompts, rules, slots) for i, text in ended.items()}
    model = load(torch.float16)
    texts = {"transformers, fp16, batches of 64": batched(model, 64),
             "transformers, fp16, batches of 32": batched(model, 32)}
    texts["ours, fp16, 128 slots"] = by_slots(model, 128)
    texts["ours, fp16, 43 slots"] = by_slots(model, 43)
    engine.attention_kernel = lambda *_: triton_attention()
    texts["ours, fp16, own kernel"] = by_slots(model, 128)
    engine.attention_kernel = lambda *_: None
    model = load(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    texts = {"transformers, fp32": batched(model, 64)} | texts
    texts["ours, fp32"] = by_slots(model, 128)
    def likelihood(texts):
        total = count = 0
        with torch.inference_mode():
            for i, text in texts.items():
                ids = torch.tensor([prompts[i] + text], device="cuda")
                scores = model(ids).logits[0, len(prompts[i]) - 1:-1].log_softmax(-1)
                total += scores.gather(1, ids[0, len(prompts[i]):, None]).sum().item()
                count += len(text)
        return round(total / count, 4)
    def same(a, b):
        alike = sum(next((k for k, (x, y) in enumerate(zip(a[i], b[i])) if x != y), len(a[i])) for i in a)
        return dict(whole_texts=round(sum(a[i] == b[i] for i in a) / len(a), 3),
                    tokens_before_first_difference=round(alike / sum(map(len, a.values())), 3))
    reference = texts["transformers, fp16, batches of 64"]
    found["agreement"] = dict(model=folder.name, titles=n, cap=cap, tokens=sum(map(len, reference.values())), **{
        name: same(reference, text) | dict(log_probability=likelihood(text)) for name, text in texts.items()},
        fp32=same(texts["transformers, fp32"], texts["ours, fp32"]))
    print(json.dumps(found["agreement"], indent=1), flush=True)


def main():
    "Measure, print, and add to a JSON file."
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="folder of TinyLlama's tokenizer")
    parser.add_argument("--what", default="ours,theirs,profile", help="measurements, separated by commas")
    parser.add_argument("--real", type=Path, help="folder of a real chat model: measure agreement only")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    args = parser.parse_args()
    found = dict(hardware=hardware(), versions=versions())
    if args.real:
        agreement(args.real, found)
    else:
        from transformers import AutoTokenizer
        small = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                     num_key_value_heads=3, tie_word_embeddings=True)
        model = random_model() if torch.cuda.is_available() else random_model(**small)
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        for name in args.what.split(","):
            {"ours": ours, "theirs": theirs, "profile": profiled, "cpu": on_cpu}[name](model, tokenizer, found)
            torch.cuda.empty_cache()
        found = dict(cpu=found) if args.what == "cpu" else found
    if args.out:
        before = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps(before | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
