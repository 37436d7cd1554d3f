"""Held-out numbers against the model's own loss, row by row, and against greedy decoding."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex.evaluate.compare.measure import adapters_below, measure_model, num_weights

VOCABULARY, QUESTION = 6, 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


def make_row(question, answer):
    return {"input_ids": [*question, *answer], "labels": [-100] * len(question) + [*answer]}


def greedy(model, question, length):
    ids = list(question)
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(question) :]


@pytest.fixture(scope="module")
def rows(model):
    """Answers of unequal lengths: a third written by greedy decoding itself, the rest by chance."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(60):
        question = torch.randint(VOCABULARY, (QUESTION,), generator=generator).tolist()
        length = 1 + i % 5
        answer = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        found.append(make_row(question, greedy(model, question, length) if i % 3 == 0 else answer))
    return found


def test_exact_match_is_what_greedy_decoding_writes(model, rows):
    by_decoding = [
        greedy(model, row["input_ids"][:QUESTION], len(row["input_ids"]) - QUESTION) == row["input_ids"][QUESTION:]
        for row in rows
    ]
    assert 20 <= sum(by_decoding) < 40  # chance is right now and then
    assert measure_model(model, rows)["exact_match"] == pytest.approx(sum(by_decoding) / len(rows))


def test_loss_is_the_mean_over_label_tokens_of_the_models_own_loss(model, rows):
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            count = sum(label != -100 for label in row["labels"])
            loss = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
            total, tokens = total + float(loss) * count, tokens + count
    found = measure_model(model, rows)
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert (found["num_label_tokens"], found["num_rows"]) == (tokens, 60)


def test_the_same_model_gives_the_same_numbers_in_any_order_of_rows_and_to_the_bit_in_the_same(model, rows):
    first = measure_model(model, rows)
    assert measure_model(model, rows) == first
    assert measure_model(model, rows[::-1])["loss"] == pytest.approx(first["loss"], rel=1e-6)


def test_an_input_embedding_is_no_weight_that_is_multiplied_unless_it_is_the_head(model):
    """Nor is the scale of a norm."""
    total = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert num_weights(model) == total - VOCABULARY * 16
    tied = copy.deepcopy(model)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert num_weights(tied) == total - VOCABULARY * 16


@pytest.mark.parametrize(
    ("given", "new", "expected"),
    [(None, False, "c"), ("a", False, "c"), ("a", True, "a,c"), ("a, b", False, "a,c"), (["a", "b"], True, "a,b,c")],
)
def test_adapters_below_are_those_that_training_had_merged(given, new, expected):
    assert adapters_below({"adapter_name_or_path": given, "create_new_adapter": new}, "c") == expected
