"""TRL's DPOTrainer with its pairs chosen by Delta Loss: a pair's score is its DPO loss. Half a minute on a CPU.

python examples/trl/dpo_delta_loss.py [output_dir]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from tiny import make_model, make_sums, make_tokenizer
from trl import DPOConfig, DPOTrainer

from dataflex import DeltaLoss, Options, Schedule, dynamic

output_dir = sys.argv[1] if len(sys.argv) > 1 else "outputs/trl_dpo_delta_loss"
tokenizer = make_tokenizer()
right, wrong = make_sums(200, seed=0), make_sums(200, seed=1)
pairs = [
    {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"], "kind": one["kind"]}
    for one, other in zip(right, wrong, strict=True)
]

trainer = dynamic(DPOTrainer)(
    model=make_model(tokenizer),
    ref_model=make_model(tokenizer),
    args=DPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        num_train_epochs=1,
        logging_steps=5,
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=Dataset.from_list(pairs),
    processing_class=tokenizer,
    selector=DeltaLoss(window_size=0.3),
    schedule=Schedule(warmup_step=5, update_step=5, update_times=3),
    options=Options(overwrite_output_dir=True),
)
trainer.train()

for decision in trainer.history:
    print(f"steps {decision['start']} to {decision['stop']}: {decision['decision']}")
print(f"what was chosen and why: dataflex-cli report {output_dir}")
