import { formatDifference, formatInterval, formatP } from "../format";
import { letterOf } from "../select";
import { go, type State } from "../state";
import type { Benchmark, Comparison, Difference } from "../types";
import { type Axis, AxisNumbers, Chart, niceAxis } from "./Chart";
import { TaskName } from "./Marks";

/** The paired comparison of two runs, task by task. */
export function Compare({ benchmark, state }: { benchmark: Benchmark; state: State }) {
  const pair = chosenPair(benchmark, state.pair);
  if (!pair) return null;
  const [first, second] = [letterOf(pair.first), letterOf(pair.second)];
  const axis = axisOf(pair.rows);
  const tasks = pair.rows.slice(0, -1);
  const all = pair.rows.at(-1)!;
  return (
    <section aria-labelledby="compare-title">
      <h2 id="compare-title">
        {second} compared with {first}
      </h2>
      {benchmark.comparisons.length > 1 && (
        <label class="pair">
          Pair{" "}
          <select value={first + second} onChange={(event) => go({ pair: event.currentTarget.value })}>
            {benchmark.comparisons.map((each) => {
              const letters = letterOf(each.first) + letterOf(each.second);
              return (
                <option value={letters}>
                  {letterOf(each.second)} {benchmark.runs[each.second]?.name} − {letterOf(each.first)}{" "}
                  {benchmark.runs[each.first]?.name}
                </option>
              );
            })}
          </select>
        </label>
      )}
      <div class="rows">
        {tasks.length > 1 && tasks.map((row) => <Row row={row} name={row.task} axis={axis} unit={benchmark.unit} />)}
        <Row row={all} name="" axis={axis} unit={benchmark.unit} />
        <div class="row">
          <span />
          <AxisNumbers axis={axis} />
        </div>
      </div>
      <p class="muted note">
        {second} − {first} on the samples that both have, with its 95 % interval. p is the probability that chance
        alone makes a difference as large; a ring instead of a dot: the interval holds zero.
      </p>
    </section>
  );
}

function Row({ row, name, axis, unit }: { row: Difference; name: string; axis: Axis; unit: string }) {
  const { difference, interval, p } = row;
  const text = `${formatDifference(difference, unit)} ${formatInterval(interval, unit)}`;
  const hollow = interval !== null && interval[0] <= 0 && interval[1] >= 0;
  const mark = { value: difference, interval, kind: "difference", line: 0, title: `${text}, ${formatP(p)}`, hollow };
  return (
    <div class={name ? "row" : "row all"}>
      <TaskName name={name} samples={row.samples} />
      <Chart axis={axis} marks={[mark]} lines={1} label={mark.title} />
      <div class="values" aria-hidden="true">
        <div>
          <b>{formatDifference(difference, unit)}</b> <span>{formatInterval(interval, unit)}</span>{" "}
          <span class="p">{formatP(p)}</span>
        </div>
      </div>
    </div>
  );
}

/** Return the comparison of two runs' letters ("AB") or, if there is none, the first one. */
export function chosenPair(benchmark: Benchmark, letters: string): Comparison | undefined {
  const matches = (each: Comparison) => letterOf(each.first) + letterOf(each.second) === letters;
  return benchmark.comparisons.find(matches) ?? benchmark.comparisons[0];
}

function axisOf(rows: Difference[]): Axis {
  const ends = rows.flatMap((row) => [row.difference, ...(row.interval ?? [])]).map(Math.abs);
  const step = niceAxis(0, Math.max(...ends, 0.001), String).ticks;
  const far = step.at(-1)!;
  const format = (value: number) => (value > 0 ? "+" : "") + String(Math.round(value * 1000) / 1000).replace("-", "−");
  return { from: -far, to: far, ticks: [-far, -far / 2, 0, far / 2, far], format };
}
