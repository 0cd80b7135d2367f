"""The reader, the counts and the groups, on lines in the spelling of the TPU, GPU and CPU compilers."""

import pytest

from vla_jax.training.plan import groups, hlo, products
from vla_jax.training.plan.cost import analyze

# Two layers: each gathers its kernel (split over 4 devices) in a fusion of its own and multiplies.
MODULE = """\
HloModule jit_step, is_scheduled=true

%gather_fusion (p: bf16[16,64]) -> (bf16[64,64], u32[]) {
  %p = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[64,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/while/body/dot"}
  ROOT %start = (bf16[64,64]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%product_fusion (x: bf16[8,64], k: bf16[64,64], kernels: bf16[2,16,64], i: s32[]) -> bf16[8,64] {
  %x = bf16[8,64]{1,0} parameter(0)
  %k = bf16[64,64]{1,0} parameter(1)
  %kernels = bf16[2,16,64]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %part = bf16[1,16,64]{2,1,0} dynamic-slice(%kernels, %i), dynamic_slice_sizes={1,16,64}
  %all-gather.2 = bf16[64,64]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %dot.1 = bf16[8,64]{1,0} dot(%x, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (carry: (s32[], bf16[8,64], bf16[2,16,64])) -> (s32[], bf16[8,64], bf16[2,16,64]) {
  %carry = (s32[], bf16[8,64]{1,0}, /*index=2*/bf16[2,16,64]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry), index=0
  %x.1 = bf16[8,64]{1,0} get-tuple-element(%carry), index=1
  %kernels.1 = bf16[2,16,64]{2,1,0} get-tuple-element(%carry), index=2
  %mine = bf16[16,64]{1,0:S(1)} bitcast(%x.1)
  %gathered = (bf16[64,64]{1,0}, u32[]{:S(2)}) fusion(%mine), kind=kCustom, calls=%gather_fusion
  %kernel = bf16[64,64]{1,0} get-tuple-element(%gathered), index=0
  %y = bf16[8,64]{1,0} fusion(%x.1, %kernel, %kernels.1, %i.1), kind=kOutput, calls=%product_fusion, backend_config={"window_config":{"estimated_cycles":"500"}}
  ROOT %out = (s32[], bf16[8,64]{1,0}, bf16[2,16,64]{2,1,0}) tuple(%i.1, %y, %kernels.1)
}

%condition (carry.2: (s32[], bf16[8,64], bf16[2,16,64])) -> pred[] {
  %limit = s32[] constant(2)
  %carry.2 = (s32[], bf16[8,64]{1,0}, bf16[2,16,64]{2,1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%carry.2), index=0
  ROOT %less = pred[] compare(%i.2, %limit), direction=LT
}

ENTRY %main (a: (s32[], bf16[8,64], bf16[2,16,64])) -> bf16[8,64] {
  %a = (s32[], bf16[8,64]{1,0}, bf16[2,16,64]{2,1,0}) parameter(0)
  %loop = (s32[], bf16[8,64]{1,0}, bf16[2,16,64]{2,1,0}) while(%a), condition=%condition, body=%body
  %end = bf16[8,64]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = bf16[8,64]{1,0} all-reduce(%end), channel_id=9, replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""  # noqa: E501


def test_shapes_know_their_bytes_and_their_memory():
    found = hlo.shapes("(bf16[96,256]{1,0:T(8,128)(2,1)S(1)}, f32[3], pred[], u32[]{:S(2)})")
    assert [(shape.bytes, shape.main_bytes) for shape in found] == [(49152, 0), (12, 12), (1, 1), (4, 0)]


def test_an_instruction_is_cut_into_its_parts():
    module = hlo.parse(MODULE)
    gather = module.computations["gather_fusion"].by_name["all-gather.1"]
    assert (gather.opcode, gather.operands, gather.attribute("channel_id")) == ("all-gather", ("p",), "7")
    assert module.computations["body"].root.name == "out"
    assert module.entry == "main"


def test_a_loop_counts_its_trips_and_an_asynchronous_collective_counts_once():
    cost = analyze(hlo.parse(MODULE), num_partitions=4)
    assert cost.flops == 2 * (2 * 8 * 64 * 64)  # two trips; counting the body once gives half
    assert cost.cycles == 2 * 500
    by_kind = {each.kind: (times, each) for times, each in cost.collectives()}
    times, gather = by_kind["all-gather"]
    # The second fusion repeats channel 7, and would double the traffic.
    assert (times, gather.bytes, gather.group, gather.is_async) == (2, 2 * 64 * 64, (0, 1, 2, 3), True)
    times, reduce = by_kind["all-reduce"]
    assert (times, reduce.bytes, reduce.group, reduce.is_async) == (1, 2 * 8 * 64, (0, 1), False)


def test_a_loop_that_counts_by_two_takes_half_the_trips():
    stepped = MODULE.replace("tuple(%i.1, %y", "tuple(%next, %y").replace(
        "  %mine =", "  %two = s32[] constant(2)\n  %next = s32[] add(%i.1, %two)\n  %mine ="
    )
    assert analyze(hlo.parse(stepped), num_partitions=4).flops == 2 * 8 * 64 * 64


def test_of_a_stack_of_kernels_only_the_slice_is_read():
    cost = analyze(hlo.parse(MODULE), num_partitions=4)
    (body,) = [region for region in cost.regions if region.name == "body"]
    read = 2 * (8 * 64 + 64 * 64 + 16 * 64) + 4  # x, kernel, one of two slices, the index
    assert {work.name: work.bytes for work in body.work}["y"] == read + 2 * 8 * 64


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # b n d, d h k -> b n h k as the TPU has it: heads are a window that slides over the kernel.
        (
            "bf16[96,256,16,72]{3,2,1,0} convolution(%x, %k), window={size=1x16 pad=0_0x15_15 rhs_reversal=0x1}, "
            "dim_labels=0bf1_i1o0->0b1f",
            2 * 96 * 256 * 72 * 16 * 72,
        ),
        # Batched products b h q d, b h m d -> b h q m: both batch dims are dilated windows.
        (
            "f32[96,16,256,256]{3,2,1,0} convolution(%q, %m), window={size=96x16 stride=95x15 lhs_dilate=96x16}, "
            "dim_labels=01bf_01oi->01bf",
            2 * 96 * 16 * 256 * 256 * 72,
        ),
        ("bf16[2,1024]{1,0} convolution(%u, %w), dim_labels=bf_io->bf", 2 * 2 * 1024 * 512),
    ],
)
def test_products_written_as_convolutions_count_as_products(line, expected):
    text = f"""\
ENTRY %main (x: bf16[96,256,72,1]) -> bf16[1] {{
  %x = bf16[96,256,72,1]{{3,2,1,0}} parameter(0)
  %k = bf16[72,16,72,1]{{3,2,1,0}} parameter(1)
  %q = bf16[96,16,256,72]{{3,2,1,0}} parameter(2)
  %m = bf16[96,16,256,72]{{3,2,1,0}} parameter(3)
  %u = bf16[2,512]{{1,0}} parameter(4)
  %w = bf16[512,1024]{{1,0}} parameter(5)
  ROOT %c = {line}
}}"""
    computation = hlo.parse(text).computations["main"]
    assert products.operations(computation.root, computation) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, dimensions={0}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, use_global_device_ids=true", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={1}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,1},{1,2}}", (0, 1)),
        ("to_apply=%add", tuple(range(8))),
    ],
)
def test_groups_in_every_spelling(text, expected):
    instruction = hlo.Instruction("x", "all-gather", (), (), text, False)
    assert groups.first_group(instruction, 8) == expected


def test_an_attribute_with_line_breaks_does_not_end_the_computation():
    broken = 'frontend_attributes={note="a\n"b"\n}}, metadata={}'
    text = MODULE.replace('custom_call_target="AsyncCollectiveStart"', broken)
    assert set(hlo.parse(text).computations) == set(hlo.parse(MODULE).computations)
    assert "metadata" in hlo.parse(text).computations["gather_fusion"].root.attributes


def test_a_kernel_of_its_own_has_the_operations_that_were_traced():
    text = MODULE.replace(
        "  %end =", '  %splash.3 = bf16[8,64]{1,0} custom-call(%loop), custom_call_target="tpu_custom_call"\n  %end ='
    )
    module = hlo.parse(text)
    without = analyze(module, num_partitions=4).flops
    cost = analyze(module, num_partitions=4, kernels={"splash": 1000.0}, kernel_idle=2.0)
    assert cost.flops == without + 1000
    assert {work.name: work.idle for region in cost.regions for work in region.work}["splash.3"] == 2.0
