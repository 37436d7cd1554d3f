"""Write the data of the comparison, and train the small model that all its runs start from.

    python examples/compare/prepare.py

Everything lies in examples/compare/data and examples/compare/models afterwards; what is there already stays.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tasks import corrupt, make_rows

HERE = Path(__file__).resolve().parent
DATA, MODELS = HERE / "data", HERE / "models"
UNTRAINED, BASE = MODELS / "untrained", MODELS / "base"
NUM_BASE, NUM_POOL, NUM_HELD_OUT = 4800, 2400, 400
CORRUPTED = 1 / 3
CLEARLY_BELOW = 0.8  # of the untrained model's held-out loss, or the comparison would start from noise


def write_data() -> None:
    """Rows for the base model, the pool with its corrupted third, and clean held-out rows that neither has."""
    held_out = make_rows(NUM_HELD_OUT, seed=3)
    avoid = frozenset(row["instruction"] for row in held_out)
    sets = {
        "base": make_rows(NUM_BASE, seed=1, avoid=avoid),
        "pool": corrupt(make_rows(NUM_POOL, seed=2, avoid=avoid), CORRUPTED, seed=4),
        "held_out": held_out,
    }
    write_sets(sets)


def write_sets(sets: dict[str, list[dict[str, str]]]) -> None:
    """Write data sets beside those that are there."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        (DATA / f"{name}.json").write_text(json.dumps(rows, indent=0), encoding="utf-8")
    known = DATA / "dataset_info.json"
    info = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    info |= {name: {"file_name": f"{name}.json"} for name in sets}
    known.write_text(json.dumps(info, indent=1), encoding="utf-8")


def write_untrained() -> None:
    """A Llama of 0.9 million random weights and a small BPE tokenizer built from the data."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = json.loads((DATA / "base.json").read_text(encoding="utf-8"))
    texts = [f"Human: {row['instruction']}\nAssistant:{row['output']}" for row in rows]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # digits and letters of a question stay apart
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder = UNTRAINED.with_name("untrained.partial")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    folder.rename(UNTRAINED)


def train_base(trained: Path = BASE, *changes: str) -> None:
    """Train the small model on rows of its own, with LLaMA-Factory as it is."""
    folder = trained.with_name(f"{trained.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "dataflex.cli.main", "train", str(HERE / "base.yaml"), f"output_dir={folder}"]
    subprocess.run(
        [*command, *changes], check=True, cwd=HERE.parents[1], env={**os.environ, "DISABLE_VERSION_CHECK": "1"}
    )
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    folder.rename(trained)


def held_out_losses(trained: Path = BASE) -> tuple[float, float]:
    """(untrained, trained): the held-out losses that the training of a base model logged first and last."""
    log = json.loads((trained / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return losses[0], losses[-1]


def main() -> None:
    write_data()
    if not UNTRAINED.is_dir():
        write_untrained()
    if not BASE.is_dir():
        train_base()
    untrained, trained = held_out_losses()
    print(
        f"held-out loss of the small model: {untrained:.3f} untrained, {trained:.3f} after training on {NUM_BASE} rows"
    )
    if trained > CLEARLY_BELOW * untrained:
        sys.exit(
            f"the base model has learned too little ({trained:.3f} of {untrained:.3f}); remove {MODELS}, train longer"
        )


if __name__ == "__main__":
    main()
