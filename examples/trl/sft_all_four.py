"""TRL's SFTTrainer with all four decisions in one run: half a minute on a CPU.

Which samples (Loss, measured at every second decision), from which domains (ODM), how much each counts in the loss
(LossWeigher), in which order (Sorting).

python examples/trl/sft_all_four.py [output_dir]
"""

from __future__ import annotations

import sys

from datasets import Dataset
from tiny import make_model, make_sums, make_tokenizer
from trl import SFTConfig, SFTTrainer

from dataflex import ODM, Loss, LossWeigher, Options, Schedule, Sorting, dynamic

output_dir = sys.argv[1] if len(sys.argv) > 1 else "outputs/trl_sft_all_four"
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
    selector=Loss(focus="high"),
    mixer=ODM(),
    weigher=LossWeigher(r=0.5),
    order=Sorting(by="length"),
    schedule=Schedule(warmup_step=20, update_step=15, update_times=4),
    options=Options(domain_column="kind", select_every=2, overwrite_output_dir=True),
)
trainer.train()

for decision in trainer.history:
    print(f"steps {decision['start']} to {decision['stop']}: {decision['decision']}")
print(f"what was chosen, mixed, weighed and arranged: dataflex-cli report {output_dir}")
