import type { Interval } from "../types";

/** From where to where an axis goes, and what stands at its lines. */
export interface Axis {
  from: number;
  to: number;
  ticks: number[];
  format: (value: number) => string;
}

const LINE = 16; // pixels from one mark's middle to the next one's, as in style.css

export interface Mark {
  value: number;
  interval: Interval | null;
  /** The class of its colour: "run-0", "difference", "paper", where `shape` counts, or "chance". */
  kind: string;
  shape?: number;
  /** The line on which it stands, from 0. */
  line: number;
  title: string;
  /** Whether its dot is only a ring: chance may explain it. */
  hollow?: boolean;
}

/** Dots with the bars of their intervals, one line each. Widths are in percent, so that it fits every column. */
export function Chart({ axis, marks, lines, label }: { axis: Axis; marks: Mark[]; lines: number; label: string }) {
  const place = (value: number) => {
    const share = (value - axis.from) / (axis.to - axis.from);
    return `${100 * Math.min(1, Math.max(0, share))}%`;
  };
  return (
    <svg class="chart" height={lines * LINE} role="img" aria-label={label}>
      <Grid axis={axis} place={place} />
      {marks.map((mark) => {
        const [x, y] = [place(mark.value), (mark.line + 0.5) * LINE];
        return (
          <g class={mark.kind}>
            <title>{mark.title}</title>
            {mark.interval && (
              <line class="bar" x1={place(mark.interval[0])} x2={place(mark.interval[1])} y1={y} y2={y} />
            )}
            {mark.kind === "chance" ? (
              <line x1={x} x2={x} y1="0" y2="100%" />
            ) : mark.kind === "paper" ? (
              <svg x={x} y={y} overflow="visible">
                <path d={paperShape(mark.shape)} />
              </svg>
            ) : (
              <circle class={mark.hollow ? "dot hollow" : "dot"} cx={x} cy={y} r="4.5" />
            )}
          </g>
        );
      })}
    </svg>
  );
}

/** The numbers below the lines of all charts in a column. */
export function AxisNumbers({ axis }: { axis: Axis }) {
  return (
    <div class="axis" aria-hidden="true">
      {axis.ticks.map((tick) => (
        <span style={{ left: `${(100 * (tick - axis.from)) / (axis.to - axis.from)}%` }}>{axis.format(tick)}</span>
      ))}
    </div>
  );
}

function Grid({ axis, place }: { axis: Axis; place: (value: number) => string }) {
  return (
    <>
      {axis.ticks.map((tick) => (
        <line
          class={tick === 0 && axis.from < 0 ? "grid zero" : "grid"}
          x1={place(tick)}
          x2={place(tick)}
          y1="0"
          y2="100%"
        />
      ))}
    </>
  );
}

const SHAPES = [
  "M0-5L5 0 0 5-5 0z", // a diamond
  "M-4-4H4V4H-4z", // a square
  "M0-5L5 4H-5z", // triangles
  "M0 5L5-4H-5z",
  "M-4-4L4 4M4-4L-4 4", // crosses
  "M0-5V5M-5 0H5",
];

function paperShape(shape = 0): string {
  return SHAPES[shape % SHAPES.length]!;
}

/** A mark of the legend. */
export function LegendMark({ kind, shape }: { kind: "paper" | "chance"; shape?: number }) {
  return (
    <svg class={`legend-mark ${kind}`} viewBox="-7 -7 14 14" aria-hidden="true">
      {kind === "paper" ? <path d={paperShape(shape)} /> : <line y1="-7" y2="7" />}
    </svg>
  );
}

/** Return an axis from `from` to at least `to` with four or five round steps. */
export function niceAxis(from: number, to: number, format: Axis["format"]): Axis {
  const rough = (to - from || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999)!;
  const first = Math.floor(from / step + 0.001);
  const last = Math.max(first + 1, Math.ceil(to / step - 0.001));
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
  return { from: first * step, to: last * step, ticks, format };
}
