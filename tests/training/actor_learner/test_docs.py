"""The two programs of docs/replay_and_actors.md, in one process and on a toy."""

import re
import threading
from pathlib import Path

from tests.training.actor_learner.toy import ABSTRACT, METADATA, SPEC, LineEnv, ToyLearner
from vla_jax.training.actor_learner.actor import Edges

DOC = Path(__file__).parent.parent.parent.parent / "docs" / "replay_and_actors.md"
KEY = "0123456789abcdef"


def test_the_documented_programs_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text(KEY)
    learner_code, actor_code = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    for there, here in (
        ("0.0.0.0", "127.0.0.1"),
        ("port=8100", "port=0"),
        ("200_000", "500"),
        ("50_000", "500"),
        ("training_starts=300", "training_starts=20"),
        ("num_train_steps=100_000", "num_train_steps=3"),
    ):
        assert there in learner_code
        learner_code = learner_code.replace(there, here)
    shared = dict(learner=ToyLearner(), edges=Edges(), metadata=METADATA, spec=SPEC, abstract_actor=ABSTRACT)
    at_learner, at_robot = dict(shared), {**shared, "env": LineEnv(), "operator": lambda *_: None, "key": KEY}
    before_fit, fitting = learner_code.split("fit(learner", 1)
    exec(before_fit, at_learner)
    assert "run(actor, link, spool)" in actor_code and "ws://learner:8100" in actor_code
    actor_code = actor_code.replace("ws://learner:8100", at_learner["server"].address)
    actor_code = actor_code.replace("run(actor, link, spool)", "run(actor, link, spool, num_decisions=40, timeout=60)")
    at_robot["row"] = at_learner["row"]
    acting = threading.Thread(target=exec, args=(actor_code, at_robot), daemon=True)
    acting.start()
    exec(f"result = fit(learner{fitting}", at_learner)
    acting.join(60)
    assert not acting.is_alive()
    assert at_learner["result"].train_step == 3
    assert at_learner["result"].metrics["collect/rows"] >= 20
