"""The tables of this package: which rows and cells they have, and what papers report in them."""

from vla_jax.core.registry import Registry
from vla_jax.evaluation.tables import Column, PaperCell, Row, TableSpec

_SUCCESS = Column("success_rate", "success")

_DEMO = TableSpec(
    name="demo",
    title="Imitation, then online RL, on the embedded tabletop suite",
    columns=(_SUCCESS, Column("swapped_instructions", "success when told another instruction")),
    rows=(
        Row("imitation", "imitation, flow policy"),
        Row("filtered_imitation", "and imitation of its own successes"),
        Row("best_of_n", "or best of 8 samples by an online critic"),
        Row("fine_tuned", "or EXPO: the critic's choice and a learned edit"),
    ),
    seeds=(0, 1, 2),
    episodes=256,
    note="All rows start from the same initial states. The second column is a control: the policy is told an "
    "instruction that is not the one it is judged by, so a policy that follows language fails there.",
)

_TABLETOP_VLA = TableSpec(
    name="tabletop_vla",
    title="One transformer for the embedded tabletop suite",
    columns=tuple(Column(f"tabletop/{task}", task) for task in ("push", "lift", "place", "stack")),
    rows=(Row("transformer", "pi0-style transformer, flow decoder", recipe="tabletop_vla.py"),),
    seeds=(0,),
    episodes=128,
    note="One policy, trained on 2,000 scripted demonstrations of each task and told what to do by the instruction.",
)

_OPENVLA = "arXiv 2406.09246, LIBERO results of the appendix: 3 seeds of 500 episodes, official demonstrations"
_OFT = "arXiv 2502.19645, LIBERO results: 500 episodes, official demonstrations"
_OPENPI = "openpi repository, examples/libero: official demonstrations"


def _libero_object_paper(value: float, source: str) -> tuple[PaperCell, ...]:
    return (PaperCell("success_rate", value, source),)


_LIBERO_OBJECT = TableSpec(
    name="libero_object",
    title="LIBERO-Object, 10 tasks",
    columns=(_SUCCESS,),
    rows=(
        Row("diffusion_policy", "Diffusion Policy, from scratch", paper=_libero_object_paper(0.925, _OPENVLA)),
        Row("octo", "Octo, fine-tuned", paper=_libero_object_paper(0.857, _OPENVLA)),
        Row("openvla", "OpenVLA, fine-tuned", paper=_libero_object_paper(0.884, _OPENVLA)),
        Row("openvla_oft", "OpenVLA-OFT", paper=_libero_object_paper(0.984, _OFT)),
        Row("pi0_fast", "pi0-FAST, fine-tuned", paper=_libero_object_paper(0.968, _OPENPI), is_paper_scale=True),
        Row("pi0", "pi0, fine-tuned", paper=_libero_object_paper(0.988, _OPENPI), is_paper_scale=True),
        Row("scripted_expert", "scripted expert (privileged state)"),
        Row("behaviour_cloning", "small flow policy, from scratch, scripted demonstrations"),
    ),
    seeds=(0, 1, 2),
    episodes=500,
    note="Ours use the official tasks, assets and initial states, but demonstrations of our scripted expert: they are "
    "not comparable with rows trained on the official demonstrations.",
)

_DISCRETE_DIFFUSION = TableSpec(
    name="discrete_diffusion_vla",
    title="Chunks with two modes, by how their tokens are decoded",
    columns=(Column("whole", "whole chunks"), Column("upper", "in the upper mode")),
    rows=(
        Row("confidence", "12 rounds, surest first (the paper's decoder)"),
        Row("gap", "12 rounds, largest lead first"),
        Row("random_order", "12 rounds, any order"),
        Row("released", "12 rounds, the released decoder"),
        Row("one_shot_argmax", "one round, likeliest tokens"),
        Row("one_shot_sampled", "one round, drawn tokens"),
        Row("autoregressive", "token by token, 16 rounds, a model of its own"),
    ),
    seeds=(0, 1, 2),
    episodes=2048,
    note="A toy: two equally good chunks of 16 tokens per context. Half of all chunks should be in the upper mode.",
)

_DISCRETE_DIFFUSION_PLACE = TableSpec(
    name="discrete_diffusion_place",
    title="Imitation on tabletop/place, by how a chunk is decoded",
    columns=(
        _SUCCESS,
        Column("mean_of_8", "the mean of 8 draws"),
        Column("noise_0.1_success_rate", "steadier demonstrations"),
        Column("noise_0.1_mean_of_8", "steadier demonstrations, the mean of 8 draws"),
    ),
    rows=(
        Row("discrete_diffusion", "tokens in 12 rounds, surest first (the paper's decoder)"),
        Row("released", "the same weights, 12 rounds of the released decoder"),
        Row("one_shot_argmax", "the same weights, one round, likeliest tokens"),
        Row("one_shot_sampled", "the same weights, one round, drawn tokens"),
        Row("ancestral", "the same weights, 12 rounds in any order, drawn tokens"),
        Row("autoregressive", "token by token, 40 rounds, a model of its own"),
        Row("flow", "flow matching, a model of its own"),
    ),
    seeds=(0, 1, 2),
    episodes=256,
    note="One convolutional backbone, 500 scripted demonstrations and 900 updates for every model; all rows start from "
    "the same initial states. The second and fourth columns act by the mean of eight chunks drawn for one "
    "observation; the third and fourth are trained on demonstrations that are disturbed by a quarter of the noise.",
)

_DISCRETE_DIFFUSION_PLACE_CHUNKS = TableSpec(
    name="discrete_diffusion_place_chunks",
    title="Chunks on tabletop/place, by how they are decoded",
    columns=(
        Column("error_of_mean", "mean of 16 draws to the demonstration, mm", "plain"),
        Column("spread", "draws around their mean, mm", "plain"),
        Column("nats", "nats per masked token", "plain"),
    ),
    rows=(
        *_DISCRETE_DIFFUSION_PLACE.rows[:5],
        *(
            Row(f"masked_{share}", f"{title} masked")
            for share, title in (
                *((1.0, "all"), (0.75, "three quarters"), (0.5, "half"), (0.25, "a quarter")),
                (0.025, "one token"),
            )
        ),
    ),
    seeds=(0, 1, 2),
    episodes=512,
    note="Frames of demonstrations that were not trained on. Distances are of the hand's displacement over the four "
    "steps that are run.",
)

_PA_RL_ARMS = {
    "imitation": "imitation",
    "critic_only": "PA-RL before experience: critic from demonstrations, frozen policy",
    "best_of_n": "best of 16 samples, frozen policy, critic trained on experience",
    "pa_rl_no_ascent": "PA-RL without gradient steps",
    "pa_rl": "PA-RL",
    "pa_rl_iql": "PA-RL with IQL's critic",
}
_PA_RL_POLICIES = {
    "diffusion": ("diffusion, 5 levels", tuple(_PA_RL_ARMS)),
    "flow": ("flow", ("imitation", "critic_only", "pa_rl")),
    "bins": ("autoregressive bins", ("imitation", "critic_only", "pa_rl")),
    "discrete_diffusion": ("discrete diffusion", ("imitation", "critic_only", "pa_rl")),
}

_PA_RL_COLUMNS = (_SUCCESS, Column("policy_alone", "success of one sample of the policy"))


def _pa_rl_row(policy: str, arm: str) -> Row:
    return Row(f"{policy}_{arm}", f"{_PA_RL_POLICIES[policy][0]}: {_PA_RL_ARMS[arm]}", recipe="pa_rl_maze.py")


_PA_RL = TableSpec(
    name="pa_rl",
    title="PA-RL in the maze of a point, by policy class",
    columns=_PA_RL_COLUMNS,
    rows=tuple(_pa_rl_row(policy, arm) for policy, (_, arms) in _PA_RL_POLICIES.items() for arm in arms),
    seeds=(0, 1, 2, 3, 4),
    episodes=256,
    note="A toy: 200 demonstrations that are often too late, then 100 episodes. All arms start from the same initial "
    "states. What acts takes the best of 16 samples by its critic; the second column takes one, so it tells what was "
    "distilled.",
)

_PA_RL_SLOW = TableSpec(
    name="pa_rl_slow",
    title="PA-RL in the maze of a point, demonstrations that are nearly always too late",
    columns=_PA_RL_COLUMNS,
    rows=tuple(_pa_rl_row(policy, arm) for policy in _PA_RL_POLICIES for arm in ("imitation", "critic_only", "pa_rl")),
    seeds=(0, 1, 2),
    episodes=256,
    note="As in the table pa_rl, with a slower demonstrator.",
)


def _serl_paper(task: str, minutes: int) -> PaperCell:
    return PaperCell("success_rate", 1.0, f"arXiv 2401.16013, {task}, {minutes} minutes of training, 100 of 100 trials")


_SERL = TableSpec(
    name="serl",
    title="SERL's learner on pick-cube with 20 demonstrations",
    columns=(
        _SUCCESS,
        Column("curve_area", "success over the run"),
        Column("shifted_success_rate", "success 12 cm away"),
    ),
    rows=(
        Row(
            "pcb",
            "SERL on a robot: insertion of a board",
            paper=(_serl_paper("PCB insertion", 20),),
            is_paper_scale=True,
        ),
        Row("cable", "SERL on a robot: cable routing", paper=(_serl_paper("cable routing", 31),), is_paper_scale=True),
        Row(
            "relocation",
            "SERL on a robot: relocation, without resets",
            paper=(_serl_paper("object relocation", 105),),
            is_paper_scale=True,
        ),
        Row("rlpd", "RLPD: half demonstrations, LayerNorm", recipe="serl_pick_cube.py"),
        Row("rlpd_without_norm", "RLPD without LayerNorm", recipe="serl_pick_cube.py"),
        Row("sac_prefilled", "SAC, demonstrations in its buffer", recipe="serl_pick_cube.py"),
        Row("sac", "SAC alone", recipe="serl_pick_cube.py"),
        Row("relative_frame", "RLPD, frame of the tool, cubes in a strip", recipe="serl_pick_cube.py"),
        Row("absolute_frame", "RLPD, frame of the base, cubes in a strip", recipe="serl_pick_cube.py"),
        Row("hil_serl", "RLPD, the grip by a critic of its own (HIL-SERL)", recipe="serl_pick_cube.py"),
        Row("hil_serl_greedy", "the same, its best command also while it explores", recipe="serl_pick_cube.py"),
        Row("pixels", "RLPD, the cube seen in pictures of 32 x 32 alone", recipe="serl_pick_cube.py"),
    ),
    seeds=(0, 1, 2),
    episodes=100,
    note="Ours: simulation, at state level but for the last row, the gripper on slides, 6,400 steps and 25,600 updates "
    "(12,800 from pictures) of ten critics of 64 units. The area is the mean success of eight evaluations in the "
    "course of training. The paper's tasks are real.",
)

_SERL_CLASSIFIER = TableSpec(
    name="serl_classifier",
    title="SERL's success classifier on synthetic pictures of 32 x 32",
    columns=(Column("accuracy", "right on new pictures"),),
    rows=(Row("classifier", "300 updates of 64 pictures, half of them successes"),),
    seeds=(0, 1, 2),
    episodes=1000,
    note="A block inside of a bin or not, half of the failures just outside; the trunk is trained, not pretrained.",
)

_DQC = TableSpec(
    name="dqc",
    title="A chain of known values: how chunks go on, and pushes",
    columns=(
        Column("error", "distance of Q from the best way to go on", "plain"),
        Column("bias", "Q minus that", "plain"),
        Column("undisturbed", "arrives"),
        Column("disturbed", "arrives, pushed on every fifth step"),
    ),
    rows=(
        Row("dqc", "DQC (5, 1): Q of single actions, distilled from chunks of 5"),
        Row("n_step", "NS-5: Q of single actions on 5-step returns"),
        Row("q_chunking", "QC (5): Q of chunks of 5, run whole"),
        Row("naive", "DQC-naive (5, 1): as QC, and only the first action is run"),
    ),
    seeds=(0, 1, 2, 3, 4),
    episodes=256,
    note="Q of the good beginning from each of 59 positions, 59 per seed in these two columns; of the whole good "
    "chunk where Q scores chunks. The exact values are found by iteration.",
)

_DQC_DATA = "released result data (github.com/ColinQiyangLi/dqc, exp_data), 1M steps, mean of 10 seeds"


def _dqc_paper(triple: float, quadruple: float) -> tuple[PaperCell, ...]:
    return PaperCell("cube-triple", triple, _DQC_DATA), PaperCell("cube-quadruple", quadruple, _DQC_DATA)


_DQC_OGBENCH = TableSpec(
    name="dqc_ogbench",
    title="DQC on OGBench with oracle goals",
    columns=(
        Column("success_rate", "a small scene"),
        Column("cube-triple", "cube-triple"),
        Column("cube-quadruple", "cube-quadruple"),
    ),
    rows=(
        Row("flow_bc_5", "flow BC of chunks of 5", "dqc_ogbench.py"),
        Row("flow_bc", "flow BC", "dqc_ogbench.py", _dqc_paper(0.539, 0.343), True),
        Row("n_step", "NS-5", "dqc_ogbench.py", _dqc_paper(0.930, 0.266), True),
        Row("q_chunking", "QC (5)", "dqc_ogbench.py", _dqc_paper(0.198, 0.350), True),
        Row("dqc", "DQC (5, 1)", "dqc_ogbench.py", _dqc_paper(0.954, 0.841), True),
        Row("dqc_093", "DQC (5, 1), backing up at QC's level of 0.93", "dqc_ogbench.py"),
        Row("dqc_25_5", "DQC (25, 5)", "dqc_ogbench.py", _dqc_paper(0.983, 0.918), True),
        Row("q_chunking_of_4", "QC (5), best of 4", "dqc_ogbench.py"),
        Row("dqc_of_4", "DQC (5, 1), best of 4", "dqc_ogbench.py"),
        Row("dqc_093_of_4", "DQC (5, 1), backing up at 0.93, best of 4", "dqc_ogbench.py"),
        Row("flow_bc_5_1m", "flow BC of chunks of 5, a million transitions", "dqc_ogbench.py"),
        Row("flow_bc_1m", "flow BC, a million", "dqc_ogbench.py"),
        Row("q_chunking_1m", "QC (5), a million", "dqc_ogbench.py"),
        Row("q_chunking_1m_of_4", "QC (5), a million, best of 4", "dqc_ogbench.py"),
        Row("dqc_1m", "DQC (5, 1), a million", "dqc_ogbench.py"),
        Row("dqc_1m_of_4", "DQC (5, 1), a million, best of 4", "dqc_ogbench.py"),
        Row("flow_bc_5_maze", "flow BC of chunks of 5, large maze of a point", "dqc_ogbench.py"),
        Row("flow_bc_maze", "flow BC, maze", "dqc_ogbench.py"),
        Row("q_chunking_maze", "QC (5), maze", "dqc_ogbench.py"),
        Row("q_chunking_maze_of_4", "QC (5), maze, best of 4", "dqc_ogbench.py"),
        Row("dqc_maze", "DQC (5, 1), maze", "dqc_ogbench.py"),
        Row("dqc_maze_of_4", "DQC (5, 1), maze, best of 4", "dqc_ogbench.py"),
    ),
    seeds=(0, 1, 2),
    episodes=250,
    note="Ours: networks of 2 x 256, batch 256, 100,000 transitions (or a million) of OGBench's oracle made here, five "
    "tasks of cube-single or of pointmaze-large, best of 32 samples (or 4). The paper's: networks of 4 x 1024, batch "
    "4096, 1M steps, 100M transitions. Not comparable.",
)

_EXPO = TableSpec(
    name="expo",
    title="A point between two goals, demonstrations of low precision: online RL by arm",
    columns=(
        Column("within_reach", "if the choice were perfect"),
        Column("early", "success over 1,000 steps"),
        Column("area", "over the run"),
        Column("final", "at its end"),
        Column("base_right", "the base alone goes right"),
    ),
    rows=(
        Row("rlpd", "RLPD, a Gaussian policy", recipe="expo_reach.py"),
        Row("best_of_8", "best of 8 base samples, no edit", recipe="expo_reach.py"),
        Row("no_lookahead", "EXPO, targets from one edited sample", recipe="expo_reach.py"),
        Row("expo", "EXPO", recipe="expo_reach.py"),
        Row("fine_rlpd", "small goals, short episodes: RLPD", recipe="expo_reach.py"),
        Row("fine_best_of_8", "small goals, short episodes: best of 8", recipe="expo_reach.py"),
        Row("fine_expo", "small goals, short episodes: EXPO", recipe="expo_reach.py"),
        Row("sharp_best_of_8", "goals beside the demonstrations: best of 8", recipe="expo_reach.py"),
        Row("sharp_expo", "goals beside the demonstrations: EXPO, edit 0.05", recipe="expo_reach.py"),
        Row("long_rlpd", "30,000 steps: RLPD", recipe="expo_reach.py"),
        Row("long_best_of_8", "30,000 steps: best of 8", recipe="expo_reach.py"),
        Row("long_expo", "30,000 steps: EXPO", recipe="expo_reach.py"),
        Row("fine_long_best_of_8", "small goals, short episodes, 30,000 steps: best of 8", recipe="expo_reach.py"),
        Row("fine_long_expo", "small goals, short episodes, 30,000 steps: EXPO", recipe="expo_reach.py"),
    ),
    seeds=(0, 1, 2, 3, 4),
    episodes=128,
    note="A toy. The first column is before learning: the distance to the goals chooses among the base's samples and, "
    "where the arm has edits, makes them. Success over a run is the mean of evaluations before learning and at equal "
    "distances. The last column is the share of episodes in which the base policy alone, as it is at the end, heads "
    "for one of the two goals: near one half where both modes are kept.",
)

_EXPO_START = TableSpec(
    name="expo_start",
    title="A point between two small goals: what is touched before anything is known",
    columns=(
        Column("sample", "one base sample"),
        Column("edited", "its edit"),
        Column("chosen", "what an untrained critic chooses"),
        Column("hidden", "hits per 1,000 steps of training without rewards", "plain"),
        Column("first_hit", "steps to the first hit, with rewards", "plain"),
    ),
    rows=(
        Row("fine_best_of_8", "best of 8", recipe="expo_reach.py"),
        Row("fine_best_of_16", "best of 16", recipe="expo_reach.py"),
        Row("fine_expo", "EXPO", recipe="expo_reach.py"),
    ),
    seeds=(0, 1, 2, 3, 4),
    episodes=1024,
    note="The first three columns are success before any update. The fourth counts goals touched in 1,500 steps whose "
    "rewards, and those of the demonstrations, are hidden. A run of 3,000 steps without a hit counts as 3,000.",
)

_SPECS = (
    _DEMO,
    _TABLETOP_VLA,
    _LIBERO_OBJECT,
    _DISCRETE_DIFFUSION,
    _DISCRETE_DIFFUSION_PLACE,
    _DISCRETE_DIFFUSION_PLACE_CHUNKS,
    _EXPO,
    _EXPO_START,
    _PA_RL,
    _PA_RL_SLOW,
    _SERL,
    _SERL_CLASSIFIER,
    _DQC,
    _DQC_OGBENCH,
)
TABLES: Registry[TableSpec] = Registry("table", {spec.name: spec for spec in _SPECS})
