"""TRL's SFTTrainer with its samples chosen by Delta Loss: half a minute on a CPU.

python examples/trl/sft_delta_loss.py [output_dir]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from tiny import make_model, make_sums, make_tokenizer
from trl import SFTConfig, SFTTrainer

from dataflex import DeltaLoss, Options, Schedule, dynamic

output_dir = sys.argv[1] if len(sys.argv) > 1 else "outputs/trl_sft_delta_loss"
tokenizer = make_tokenizer()

trainer = dynamic(SFTTrainer)(
    model=make_model(tokenizer),
    args=SFTConfig(
        output_dir=output_dir,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        num_train_epochs=1,
        logging_steps=10,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=64,
    ),
    train_dataset=Dataset.from_list(make_sums(1000)),
    processing_class=tokenizer,
    selector=DeltaLoss(window_size=0.3),
    schedule=Schedule(warmup_step=20, update_step=20, update_times=3),
    options=Options(overwrite_output_dir=True),
)
trainer.train()

for decision in trainer.history:
    print(f"steps {decision['start']} to {decision['stop']}: {decision['decision']}")
print(f"what was chosen and why: dataflex-cli report {output_dir}")
