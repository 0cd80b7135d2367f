#!/usr/bin/env bash
# Every number in results/: hours on two CPU cores. Each part resumes where it stopped; name parts to run only those:
#   scripts/reproduce.sh demo tabletop_vla libero
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin

demo() { # three seeds of four arms, half an hour each
  "$bin/python" scripts/reproduce_demo.py --seeds 0 1 2
  "$bin/vla-jax" table demo
}

tabletop_vla() { # the transformer on the whole suite, an hour with the demonstrations
  "$bin/vla-jax" data generate --out runs/tabletop_vla/data/1.0.0 --tasks push lift place stack --episodes-per-task 2000
  "$bin/vla-jax" train recipes/tabletop_vla.py:looking --run runs/tabletop_vla/looking
  "$bin/vla-jax" train recipes/tabletop_vla.py --run runs/tabletop_vla/train
  "$bin/vla-jax" eval runs/tabletop_vla/train --table tabletop_vla --run seed0 --row transformer
}

libero() { # needs the extra: make install EXTRAS=test,libero
  "$bin/python" -m data_pipelines.libero generate --tasks 0 1 2 --episodes 25 --out runs/libero/libero_object_scripted_25
  "$bin/vla-jax" train recipes/libero_object.py --run runs/libero_object/quick
  "$bin/vla-jax" eval runs/libero_object/quick --doctor --table libero_object --run quick --row behaviour_cloning
}

discrete_diffusion_vla() { # a toy, five minutes per seed
  "$bin/python" scripts/reproduce_discrete_diffusion.py --seeds 0 1 2
  "$bin/vla-jax" table discrete_diffusion_vla
}

discrete_diffusion_place() { # on a robot task: three trainings per seed, half an hour of one core together
  "$bin/python" scripts/reproduce_discrete_diffusion_place.py --seeds 0 1 2
  "$bin/vla-jax" table discrete_diffusion_place
}

expo() { # nine arms of two minutes of one core each, and five of twenty; how they start, ten
  "$bin/python" scripts/reproduce_expo.py --seeds 0 1 2 3 4
  "$bin/python" scripts/inspect_expo_start.py --seeds 0 1 2 3 4
  "$bin/vla-jax" table expo
  "$bin/vla-jax" table expo_start
}

serl() { # eight arms, two minutes of one core per seed, and one of pictures, half an hour; the classifier
  "$bin/python" scripts/reproduce_serl.py --seeds 0 1 2
  "$bin/python" scripts/reproduce_serl_classifier.py --seeds 0 1 2
  "$bin/vla-jax" table serl
  "$bin/vla-jax" table serl_classifier
}

dqc() { # a chain, a minute of one core per method and seed
  "$bin/python" scripts/reproduce_dqc.py --seeds 0 1 2 3 4
  "$bin/vla-jax" table dqc
}

dqc_ogbench() { # needs the extra ogbench: three trainings per seed, a quarter of an hour of one core each, and two of half an hour; half an hour of data
  "$bin/python" -m data_pipelines.ogbench generate --env cube-single --steps 100000 --out runs/ogbench/cube-single-play
  "$bin/python" scripts/reproduce_dqc_ogbench.py --seeds 0 1 2
  "$bin/python" -m data_pipelines.ogbench generate --env cube-single --steps 1000000 --out runs/ogbench/cube-single-play-1m
  "$bin/python" scripts/reproduce_dqc_ogbench.py --seeds 0 1 2 --size million --methods dqc q_chunking
  "$bin/python" scripts/reproduce_dqc_ogbench.py --judge
  "$bin/vla-jax" table dqc_ogbench
}

pa_rl() { # the maze of a point, minutes per seed and class
  "$bin/python" scripts/reproduce_pa_rl.py --seeds 0 1 2 3 4
  "$bin/python" scripts/reproduce_pa_rl.py --policies flow bins --arms pa_rl --seeds 0 1 2
  "$bin/python" scripts/reproduce_pa_rl.py --policies discrete_diffusion --seeds 0 1 2 --arms # imitation alone
  "$bin/python" scripts/reproduce_pa_rl.py --table pa_rl_slow --policies discrete_diffusion --arms pa_rl --seeds 0 1 2
  for table in pa_rl pa_rl_slow; do
    "$bin/python" scripts/reproduce_pa_rl.py --table "$table" --judge
    "$bin/vla-jax" table "$table"
  done
}

[ $# -gt 0 ] || set -- demo tabletop_vla libero discrete_diffusion_vla discrete_diffusion_place expo serl dqc dqc_ogbench pa_rl
for part in "$@"; do "$part"; done
