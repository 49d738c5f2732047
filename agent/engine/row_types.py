"""In which type the rows of a frame travel over a link: the most exact one that is quick enough.

A core; `calibrate.py` measures the bandwidth, `link.py` asks for each frame.

    An operator's word (`engine.frames`) decides. Else a frame may take 1 ms to cross the link, or
    1/4 ms a row if that is more, and goes in the first of f32, f16, q8 that does; in q8 if none.

So what is exact is given up where it costs time alone. 16 answers at once, as many rows, may then
cost a hop 4 ms, and a row of a prompt 1/4 ms: a part of what a stage computes meanwhile on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.engine.frames import Q8_BLOCK, RowType

FRAME_S = 1e-3
ROW_S = 0.25e-3
# How sure a measured bandwidth is to be what it was before and after.
_MARGIN = 2.0


@dataclass(frozen=True)
class LinkTypes:
    """The types of one link whose rows have `n_embd` values.

    `fixed` is the operator's choice, None: by `bandwidth`, in bytes a second; from `plenty` on it
    may be more.
    """

    n_embd: int
    fixed: RowType | None = RowType.F32
    bandwidth: float = 0.0

    @property
    def plenty(self) -> float:
        """The bandwidth of which so much as that every frame goes in f32 is half."""
        return _MARGIN * RowType.F32.row_bytes(self.n_embd) / ROW_S

    def of(self, rows: int) -> RowType:
        """Return the type for a frame of so many rows."""
        if self.fixed is not None:
            return self.fixed
        allowed = max(FRAME_S, rows * ROW_S) * self.bandwidth
        for row_type in (RowType.F32, RowType.F16):
            if rows * row_type.row_bytes(self.n_embd) <= allowed:
                return row_type
        return RowType.F16 if self.n_embd % Q8_BLOCK else RowType.Q8

    def __str__(self) -> str:
        """Return the types and why, for people."""
        if self.fixed is not None:
            return f"{self.fixed.name.lower()} (as set)"
        few, many = (self.of(rows).name.lower() for rows in (1, 1024))
        types = few if few == many else f"{few}, prompts {many}"
        more = " or more" if self.bandwidth >= self.plenty else ""
        return f"{types} ({8e-6 * self.bandwidth:,.0f} Mbit/s{more})"
