"""One step of all layers, made once and run again and again: what a stream runs at every call."""

from collections.abc import Sequence

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights, States
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.forward_pass import ForwardSweep
from cupy_lstm.simd.layout import layout_of
from cupy_lstm.simd.matrix import CopyJob, copy_rows
from cupy_lstm.simd.rows import rows_of
from cupy_lstm.simd.scratch import Scratch, address
from cupy_lstm.simd.sharing import Share
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.threads import Call, Task, crew
from cupy_lstm.simd.weights import Packed


class ReadyStep:
    """One step of all layers and all the memory it uses, the states included.

    Parameters
    ----------
    weights : sequence of LayerWeights
        The weights of every layer, of one direction.
    packed : sequence of Packed
        The same, packed.
    states : tuple of array [L,B,P], [L,B,H]
        Those to go on from, copied.

    Attributes
    ----------
    memory : tuple of array [L,B,P], [L,B,H]
        The states, read and written by every step.
    """

    def __init__(
        self, weights: Sequence[LayerWeights], packed: Sequence[Packed], states: States
    ) -> None:
        (L, B, P), H = states[0].shape, states[1].shape[2]
        self._layouts, self._packed = [layout_of(1, B, layer) for layer in weights], packed
        first = self._layouts[0]
        # Before a step, as memory; and after it, of which every thread copies its part back.
        self._h = first.zeros(L, 1, 2, B, first.h_width)
        self._c = first.zeros(L, 1, B, first.c_width)
        self._h_before, self._c_before = self._h[:, :, 0].copy(), self._c.copy()
        self.memory = self._h[:, 0, 0, :, :P], self._c[:, 0, :, :H]
        for kept, values in zip(self.memory, states, strict=True):
            kept[...] = values
        self._x, self._y = first.zeros(1, B, first.shape.I), first.zeros(1, B, 1, P)
        self._x_rows, self._y_rows = self._x[0], self._y[0, :, 0]
        self._work = sum(layout.work(B) for layout in self._layouts)
        # Kernels are compiled now, not while the first step waits.
        self._tasks: dict[int, Task] = {}
        self._made(1)

    def run(self, x: HostArray, y: HostArray | None) -> HostArray:
        """Run one step from x [B,I] into y [B,P], any strides, or a new array; return that."""
        with crew() as workers:
            team = workers.team(self._work)
            task = self._tasks.get(team) or self._made(team)
            # To copy them takes less time than to find out where they are.
            self._x_rows[...] = x
            begun = task.begun
            try:
                workers.run(task)
                if y is None:
                    return self._y_rows.copy()
                y[...] = self._y_rows
                return y
            except BaseException:
                # An interrupt: a step that was begun has come to its end, and is taken back.
                if task.begun != begun:
                    self._h[:, :, 0], self._c[...] = self._h_before, self._c_before
                raise

    def _made(self, team: int) -> Task:
        """Return the steps of all layers for so many threads."""
        stages = Stages(self._layouts[0], team)
        scratch = stages.scratch
        for array in (self._x, self._h_before, self._c_before):
            scratch.keep(array)
        x = self._x
        for number, (layout, packed) in enumerate(zip(self._layouts, self._packed, strict=True)):
            rows = rows_of(None, 1, layout.shape.B, range(1), False)
            sweep = ForwardSweep(stages, layout, [rows], packed, self._h[number], self._c[number])
            last = number == len(self._layouts) - 1
            y = self._y if last else layout.zeros(*self._y.shape)
            scratch.keep(y)
            for weight in packed:
                if weight is not None:
                    scratch.keep(weight)
            parts = []
            for calls, shares in sweep.parts(x, y, None, 1):
                around = [self._copies(number, share, scratch) for share in shares]
                before, after = ([call for pair in around for call in pair[k]] for k in (0, 1))
                parts.append([*before, *calls, *after])
            stages.add("recurrence", parts)
            x = y[:, :, 0]
        task = self._tasks[team] = stages.task()
        return task

    def _copies(self, number: int, share: Share, scratch: Scratch) -> tuple[list[Call], list[Call]]:
        """Return what a thread does around its part of a layer.

        Before, it keeps the states; after, it puts the outputs where the next step begins.
        """
        layout = self._layouts[number]
        rows, step = share.last_row - share.first_row, layout.lanes.count
        c_part = slice(share.first_block * step, share.last_block * step)
        # Who projects has all units.
        h_part = c_part if share.team > 1 else slice(layout.h_width)
        h, c = self._h[number, 0], self._c[number, 0]
        h_before, c_before = self._h_before[number, 0], self._c_before[number, 0]
        copies = []
        for source, target, part in (
            (h[0], h_before, h_part),
            (c, c_before, c_part),
            (h[1], h[0], h_part),
        ):
            job = CopyJob(
                source=address(source[share.first_row :, part]),
                source_step=source.strides[0],
                target=address(target[share.first_row :, part]),
                target_step=target.strides[0],
                rows=rows,
                numbers=source[0, part].size,
            )
            copies.append((kernel(copy_rows, layout.lanes), scratch.job(job)))
        return copies[:2], copies[2:]
