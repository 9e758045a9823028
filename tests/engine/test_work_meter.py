"""WorkMeter: operations and bytes of steps, against the same sums written out by hand."""

from glimt.engine.plan import RowWork, StepPlan
from glimt.engine.work_meter import WorkMeter, WorkSizes
from glimt.wire import Order
from tests.engine.test_orders import Told
from tests.support.workload import make_image, make_submit

SIZES = WorkSizes(
    weights=100,
    weight_bytes=200,
    expert_weights=7,
    expert_bytes=14,
    num_experts=4,
    num_all_experts=8,
    experts_per_token=2,
    head_weights=50,
    head_bytes=60,
    pair_flops=3,
    kv_token_bytes=16,
    vision_weights=11,
    vision_bytes=22,
    vision_pair_flops=5,
)


def test_a_step_costs_what_its_tokens_pairs_and_draws_cost() -> None:
    meter = WorkMeter(SIZES)
    work = (RowWork(0, 10, 1, samples=True), RowWork(1, 0, 3))
    meter.count(StepPlan(1, work=work))
    pairs = 11 + (1 + 2 + 3)
    experts = 2 * 7 * 4 * 2 * (4 / 8)  # 4 tokens, 2 experts each, half of them on this device
    assert meter.flops == 2 * 100 * 4 + 2 * 50 + 3 * pairs + experts
    hit = 14 * 4 * (1 - (6 / 8) ** 4)
    assert meter.read_bytes == 200 + 60 + 16 * (11 + 3) + hit
    assert meter.written_bytes == 16 * 4


def test_images_cost_their_patches_and_the_pairs_of_them() -> None:
    meter = WorkMeter(SIZES)
    image = make_image(0, 3, "a")
    patches = image.grid_h * image.grid_w
    meter.count(StepPlan(1, encode=(image, image)))
    assert meter.flops == 2 * (2 * 11 * patches + 5 * patches**2)
    assert (meter.read_bytes, meter.written_bytes) == (22, 0)


def test_a_loop_counts_each_step_once_and_tells_it_in_its_statistics() -> None:
    meter = WorkMeter(SIZES)
    told = Told(None, meter=meter)
    told.turn(make_submit(1, [2, 3, 4], max_tokens=4))
    told.turn_until(lambda: any(o.finish_reason for o in told.post.outputs(1)))
    told.turn(Order(server=0, order_id=9, kind="wake"))  # its answer brings statistics
    # 3 tokens of the prompt, then one a step; a step that came too late counts as well.
    assert meter.written_bytes >= 16 * 6
    stats = told.post.stats()[-1]
    assert stats.estimated_flops == meter.flops > 0
    assert stats.estimated_read_bytes == meter.read_bytes
    assert stats.estimated_written_bytes == meter.written_bytes
