"""A language model from nothing with the plain Trainer, its rows chosen by Delta Loss: half a minute on a CPU.

python examples/hf/pretrain_from_scratch.py [output_dir]
"""

from __future__ import annotations

import random
import sys

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dataflex import DeltaLoss, Options, Schedule, dynamic

output_dir = sys.argv[1] if len(sys.argv) > 1 else "outputs/hf_pretrain_from_scratch"

# A small language: subject, verb, object, some of them noise.
rng = random.Random(0)
words = {
    "subject": ["the cat", "a dog", "my friend"],
    "verb": ["sees", "likes", "finds"],
    "object": ["it", "them", "us"],
}
texts = [" ".join(rng.choice(words[part]) for part in ("subject", "verb", "object")) + " ." for _ in range(800)]
noise = ["".join(rng.choice("abcdefgh ") for _ in range(20)) for _ in range(200)]

tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(texts + noise, trainers.BpeTrainer(vocab_size=120, special_tokens=["<pad>", "<unk>"]))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
rows = [{"input_ids": tokenizer(t)["input_ids"], "kind": "sentence"} for t in texts]
rows += [{"input_ids": tokenizer(t)["input_ids"], "kind": "noise"} for t in noise]

set_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=120, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
)
trainer = dynamic(Trainer)(
    model=model,
    args=TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        num_train_epochs=1,
        logging_steps=10,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=Dataset.from_list(rows),
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    processing_class=tokenizer,
    selector=DeltaLoss(window_size=0.3),
    schedule=Schedule(warmup_step=20, update_step=20, update_times=3),
    options=Options(overwrite_output_dir=True),
)
trainer.train()

for decision in trainer.history:
    print(f"steps {decision['start']} to {decision['stop']}: {decision['decision']}")
print(f"what was chosen and why: dataflex-cli report {output_dir}")
