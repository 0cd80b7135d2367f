"""From recorded LIBERO episodes to a judged checkpoint in a fake simulator: what a user sees of recipe and commands."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from data_pipelines import libero_records
from recipes import libero_object, tabletop_demo
from tests.envs.fake_libero import FakeSimulator
from vla_jax import cli, experiment
from vla_jax.core import errors
from vla_jax.core.types import Observation
from vla_jax.data.demonstrations import DemonstrationDataset
from vla_jax.envs import libero_sim
from vla_jax.envs.libero import LiberoTasks, LiberoVectorEnv
from vla_jax.envs.libero_sim import RenderOptions
from vla_jax.evaluation import fingerprint, judges, libero_replay, results
from vla_jax.evaluation.fingerprint import Fingerprint
from vla_jax.training import trained
from vla_jax.training.plain import from_plain, to_plain
from vla_jax.training.recipe import Recipe

SIZE = 64  # of the fake cameras; the policy sees a quarter of it
RENDER = RenderOptions(image_size=SIZE)
NAMES = ("alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce", "butter", "milk")
INSTRUCTIONS = tuple(
    f"pick up the {name} and place it in the basket" for name in (*NAMES, "chocolate pudding", "orange juice")
)


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def mark(offset=0, **changes):
    golden = {"libero_object/front": fingerprint.summarize(np.full((SIZE, SIZE, 3), 100 + offset, np.uint8))}
    base = Fingerprint({"mujoco": "3.17.0"}, "fake", RENDER, {"libero_object": "0123"}, golden)
    return dataclasses.replace(base, **changes)


def write_set(folder, length=5):
    """Task k is solved at sum k + 1: `length` steps at 0.25 from sum k."""
    episodes = []
    for task in range(3):
        actions = np.random.default_rng(task).normal(0, 0.1, (length, 7)).astype(np.float32)
        actions[:, 0] = 0.25
        jpegs = tuple(libero_records.encode_jpeg(picture(10 * task + i), 95) for i in range(length))
        states = np.random.default_rng(task).normal(size=(length, 15)).astype(np.float32)
        episodes.append(
            libero_records.LiberoEpisode(
                file_path=f"libero_object/{task}",
                instruction=INSTRUCTIONS[task],
                images=jpegs,
                wrist_images=jpegs,
                state=states[:, :8],
                joint_state=states[:, 8:],
                actions=actions,
                suite="libero_object",
                task=task,
                init_state=np.full(3, float(task)),
                scene_seed=0,
            )
        )
    mark().save(folder / "fingerprint.json")
    return libero_records.write_dataset(folder, episodes, description="", metadata={}, image_size=SIZE)


def tiny(path):
    recipe = libero_object.quick()
    tasks = LiberoTasks("libero_object", (0, 1, 2), num_init_states=2, render=RENDER)
    backbone = dataclasses.replace(recipe.policy.backbone, image_size=(16, 16), channels=4, hidden=16, feature_dim=8)
    decoder = dataclasses.replace(recipe.policy.decoder, num_flow_steps=2)
    (dataset,) = recipe.data.datasets
    mesh = dataclasses.replace(recipe.fit.mesh, data=1)
    return dataclasses.replace(
        recipe,
        policy=dataclasses.replace(recipe.policy, backbone=backbone, decoder=decoder),
        optimizer=dataclasses.replace(recipe.optimizer, warmup_steps=1, decay_steps=2),
        fit=dataclasses.replace(recipe.fit, num_train_steps=2, log_every=1, mesh=mesh),
        evaluation=dataclasses.replace(recipe.evaluation, envs=(tasks,)),
        data=dataclasses.replace(recipe.data, batch_size=4, datasets=(dataclasses.replace(dataset, path=str(path)),)),
    )


def fake_env(suite="libero_object", num_workers=1):
    simulator = functools.partial(FakeSimulator, SIZE)
    return LiberoVectorEnv(suite, num_workers, RENDER, episode_length=9, make_simulator=simulator)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint, trained without LIBERO: nothing of it is patched here."""
    folder = tmp_path_factory.mktemp("libero")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        experiment.train(tiny(write_set(folder / "set")), folder / "run", quiet=True)
        yield folder / "run"


@pytest.fixture
def fake_libero(monkeypatch):
    monkeypatch.setattr(libero_sim, "suite_instructions", lambda suite: INSTRUCTIONS)
    monkeypatch.setattr(LiberoTasks, "make", lambda self: fake_env(self.suite, self.num_workers))
    monkeypatch.setattr(libero_replay, "_state_only", fake_env)
    monkeypatch.setattr(fingerprint, "take", lambda suites, render: mark())


def evaluate(run, folder, capsys, *arguments):
    cli.main(["eval", str(run), "--table", "t", "--run", "r", "--results", str(folder), *arguments])
    return capsys.readouterr().out, {entry.cell: entry for entry in results.load(folder / "t" / "r.json")}


def test_a_recipe_with_libero_tasks_survives_json():
    recipe = libero_object.quick()
    assert from_plain(Recipe, json.loads(json.dumps(to_plain(recipe)))) == recipe


def test_the_words_of_the_recipe_spell_every_instruction_of_the_suite():
    tokenizer = libero_object.quick().text.tokenizer()
    tokens = np.stack([tokenizer.encode(text, 12)[0] for text in INSTRUCTIONS])
    assert len(np.unique(tokens, axis=0)) == 10
    assert [tokenizer.decode(row) for row in tokens] == list(INSTRUCTIONS)


def test_eval_prints_and_stores_every_task_and_their_average(run, fake_libero, tmp_path, capsys):
    shown, entries = evaluate(run, tmp_path, capsys)
    assert list(entries) == ["libero_object/0", "libero_object/1", "libero_object/2", "libero_object/tasks_0_1_2"]
    *tasks, average = entries.values()
    assert [entry.episodes for entry in tasks] == [2, 2, 2] and average.episodes == 6
    assert average.mean == pytest.approx(np.mean([entry.mean for entry in tasks]))
    assert average.records["initial_state"] == [f"libero_object:{t}:{i}" for t in range(3) for i in range(2)]
    assert "libero_object/tasks_0_1_2: success rate" in shown and "6 episodes" in shown
    assert Fingerprint.from_json(average.manifest["simulator"]["fingerprint"]) == mark()
    assert average.seeds == (0,) and average.manifest["seeds"] == [0, 1000]  # of training; of the policy's noise
    assert average.manifest["evaluated"]["num_init_states"] == 2
    assert "as that of the training data" in shown and "***" not in shown


def test_another_simulator_is_warned_of_before_and_kept_with_the_result(
    run, fake_libero, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(fingerprint, "take", lambda suites, render: mark(offset=-9))
    shown, entries = evaluate(run, tmp_path, capsys)
    assert "*** IMAGES DIFFER" in shown and shown.index("***") < shown.index("success rate")
    (found,) = entries["libero_object/0"].manifest["simulator"]["differences"].values()
    assert found[0].startswith("golden frame libero_object/front")


def test_doctor_clears_or_blames_the_simulator_first(run, fake_libero, tmp_path, capsys, monkeypatch):
    shown, _ = evaluate(run, tmp_path, capsys, "--doctor")
    assert "3 of 3 episodes succeed again" in " ".join(shown.split()) and "TO BLAME" not in shown

    monkeypatch.setattr(libero_replay, "_state_only", _slippery_env)
    shown, entries = evaluate(run, tmp_path, capsys, "--doctor")
    assert "THE SIMULATOR IS TO BLAME: 3 of 3" in shown and shown.index("TO BLAME") < shown.index("success rate")
    (replayed,) = entries["libero_object/0"].manifest["simulator"]["replayed"].values()
    assert replayed == {"episodes": 3, "succeeded": 0}


class SlipperySimulator(FakeSimulator):
    """Every action does half of what it did where the data were made."""

    def step(self, action):
        return super().step(np.asarray(action) / 2)


def _slippery_env(suite, num_workers):
    return LiberoVectorEnv(suite, num_workers, RENDER, episode_length=9, make_simulator=SlipperySimulator)


def test_swapped_instructions_are_those_of_the_next_task(run, fake_libero, tmp_path, capsys):
    _, entries = evaluate(run, tmp_path, capsys, "--swap-instructions", "--envs.0.tasks", "0", "2")
    entry = entries["libero_object/tasks_0_2/swapped_instructions"]
    assert entry.records["instruction"] == [0, 0, 2, 2] and entry.records["shown_instruction"] == [2, 2, 0, 0]


def test_training_and_evaluation_see_the_same_bytes(run):
    """Recorded: JPEG, decode, average. Live: JPEG round trip in the simulator, then the policy's edge averages."""
    policy = trained.load(run)
    config = policy.recipe.data.datasets[0]
    batch = DemonstrationDataset(config, policy.edges.normalizer, policy.edges.encode).batch(np.array([0, 7]))
    live = np.stack([libero_sim.jpeg_round_trip(picture(number), 95) for number in (0, 12)])
    mask = np.ones(2, bool)
    seen = Observation({"front": live}, {"front": mask}, np.zeros((2, 8), np.float32), mask[:, None], mask[:, None])
    np.testing.assert_array_equal(policy.edges.normalize(seen).images["front"], batch.observation.images["front"])


def test_periodic_evaluation_reports_the_rate(run, fake_libero):
    policy = trained.load(run)
    (tasks,) = policy.recipe.evaluation.envs
    judge = judges.make_judge(tasks, policy.learner, policy.edges, policy.recipe.evaluation)
    names = policy.metadata["action"]["names"]
    evaluate = experiment._evaluator([judge], policy.recipe, policy.learner, policy.edges, names, {})
    metrics = evaluate(policy.params, 2)
    assert set(metrics) == {"eval/success_rate", "eval/return"} and 0 <= metrics["eval/success_rate"] <= 1


def test_what_cannot_be_is_refused():
    with pytest.raises(errors.ConfigError, match=r"different ones of 0\.\.9"):
        LiberoTasks(tasks=(0, 10))
    with pytest.raises(errors.ConfigError, match="libero_object"):
        LiberoTasks(suite="libero_objekt")
    finetune = tabletop_demo.finetune()
    evaluation = dataclasses.replace(finetune.evaluation, envs=(LiberoTasks(),))
    with pytest.raises(errors.ConfigError, match="JAX program"):
        dataclasses.replace(finetune, evaluation=evaluation)


def test_the_policy_has_to_fit_the_cameras(run):
    policy = trained.load(run)
    tasks = LiberoTasks(tasks=(0,), render=RenderOptions(image_size=72))
    evaluation = dataclasses.replace(policy.recipe.evaluation, envs=(tasks,))
    with pytest.raises(errors.ConfigError, match=r"does not fit libero_object"):
        experiment.evaluate(policy, evaluation)
