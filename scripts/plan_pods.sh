#!/bin/bash
# The plans of docs/scale.md and docs/models.md, into results/plan: one compilation each, seconds to minutes on a free
# core. What was compiled is kept in $CACHE (default runs/plan), so running it again only prints. Arguments pick plans by
# their name.
set -eu
PLAN=${PLAN:-.venv/bin/vla-jax}
mkdir -p results/plan

plan() {
  name=$1
  shift
  case " ${WANTED:-$name} " in *" $name "*) ;; *) return ;; esac
  echo "== $name"
  "$PLAN" plan "$@" --timeout 9000 ${CACHE:+--cache "$CACHE"} --json "results/plan/$name.json" --markdown "results/plan/$name.md"
}

WANTED="$*"
[ -n "$WANTED" ] || unset WANTED
PI0=recipes/pi0_droid.py:paper PI05=recipes/pi05_droid.py:paper

plan pi0_v5e_256 $PI0 --topology v5e:16x16 --mesh data=4,fsdp=64 --batch-size 2048
plan llama3.1_8b_v6e_256 reference:llama3.1-8b --topology v6e:16x16 --mesh fsdp=256
plan pi0_h100_8 $PI0 --topology h100:8 --mesh fsdp=8 --batch-size 256 --microbatches 2 --compiler cpu
plan pi0_v5e_16 $PI0 --topology v5e:4x4 --mesh fsdp=16 --batch-size 128 --microbatches 2
plan llama2_70b_v5p_512 reference:llama2-70b --topology v5p:8x8x8 --mesh fsdp=512
plan pi0_v5p_128 $PI0 --topology v5p:4x4x4 --mesh data=4,fsdp=16 --batch-size 2048
plan pi0_v5e_64 $PI0 --topology v5e:8x8 --mesh data=2,fsdp=32 --batch-size 512
plan pi05_v5e_256 $PI05 --topology v5e:16x16 --mesh data=4,fsdp=64 --batch-size 2048
plan pi05_v5p_128 $PI05 --topology v5p:4x4x4 --mesh data=4,fsdp=16 --batch-size 2048
plan pi05_v5e_16 $PI05 --topology v5e:4x4 --mesh fsdp=16 --batch-size 128 --microbatches 2
plan pi05_h100_8 $PI05 --topology h100:8 --mesh fsdp=8 --batch-size 256 --microbatches 2 --compiler cpu

# One device: virtual, and one of four under the TPU compiler, which places bfloat16 as an accelerator does.
ONE=recipes/pi0_droid.py:one_gpu LORA=recipes/pi0_droid.py:lora
one_device() {
  plan "$1_h100_1" "${@:2}" --topology h100:1 --compiler cpu
  plan "$1_v5p_4" "${@:2}" --topology v5p:2x2x1 --mesh data=4 --batch-size "$BATCH"
}
BATCH=128
one_device pi0_full $ONE
one_device pi0_full_bfloat16 $ONE --tuning.train-in bfloat16
for kept in float32 bfloat16 int8; do one_device "pi0_lora_$kept" $LORA --tuning.keep-frozen-in $kept; done
BATCH=4
for kept in float32 bfloat16 int8; do one_device "pi0_acting_$kept" $PI0 --acting $kept; done
