import { formatInterval, formatValue } from "../format";
import { address, follow, type State } from "../state";
import { runLetter, viewOf } from "../select";
import type { Benchmark, TaskRow } from "../types";
import { type Axis, AxisNumbers, Chart, LegendMark, type Mark, niceAxis, PaperShape } from "./Chart";
import { Compare } from "./Compare";
import { RunLetter, runClass, TaskName } from "./Marks";

/** All tasks of a benchmark: each run with its interval, beside the paper's rows; then the paired comparison. */
export function Results({ benchmark, state }: { benchmark: Benchmark; state: State }) {
  const { measure, unit, runs, tasks, overall } = benchmark;
  const rows = tasks.length > 1 ? [...tasks, overall] : [overall];
  const papers = [...new Set(rows.flatMap((row) => row.paper.map((each) => each.name)))];
  const axis = axisOf(benchmark, rows);
  const different = viewOf(state, benchmark) === "different";
  const back = { show: "" };
  return (
    <article class="results">
      <a class="back" href={address(back)} onClick={(event) => follow(event, back)}>
        ‹ Samples
      </a>
      {different && <Compare benchmark={benchmark} state={state} />}
      <section aria-labelledby="results-title">
        <h2 id="results-title">{measure ? `${sentenceCase(measure)}${unit && ` (${unit})`} by task` : "Results"}</h2>
        {measure ? (
          <>
            <ul class="legend" aria-label="Legend">
              {runs.map((run, index) => (
                <li>
                  <RunLetter index={index} /> <bdi>{run.name}</bdi>
                </li>
              ))}
              {papers.map((name, shape) => (
                <li>
                  <LegendMark>
                    <PaperShape shape={shape} />
                  </LegendMark>{" "}
                  <bdi>{name}</bdi> <span class="muted">(paper)</span>
                </li>
              ))}
            </ul>
            <div class="rows">
              {rows.map((row) => (
                <Row benchmark={benchmark} row={row} axis={axis} papers={papers} all={row === overall} />
              ))}
              <div class="row">
                <span />
                <AxisNumbers axis={axis} />
              </div>
            </div>
            <p class="muted note">Dots are means, bars their 95 % intervals. A click on a task shows its samples.</p>
          </>
        ) : (
          <p>These answers are not scored.</p>
        )}
      </section>
      {!different && <Compare benchmark={benchmark} state={state} />}
      <Runs benchmark={benchmark} />
    </article>
  );
}

interface RowProps {
  benchmark: Benchmark;
  row: TaskRow;
  axis: Axis;
  papers: string[];
  all: boolean;
}

function Row({ benchmark, row, axis, papers, all }: RowProps) {
  const { unit, runs } = benchmark;
  const marks: Mark[] = [];
  row.runs.forEach((value, run) => {
    if (value) {
      const title = `${runLetter(run)} ${runs[run]?.name}: ${formatValue(value.value, unit)} ${formatInterval(value.interval, unit)}`;
      marks.push({ ...value, kind: runClass(run), line: run, title });
    }
  });
  for (const { name, value } of row.paper) {
    const title = `${name} (paper): ${formatValue(value, unit)}`;
    marks.push({ value, interval: null, kind: "paper", shape: papers.indexOf(name), line: runs.length, title });
  }
  const lines = runs.length + (papers.length > 0 ? 1 : 0);
  return (
    <div class={all ? "row all" : "row"}>
      <TaskName name={all ? "" : row.name} samples={row.samples} />
      <Chart axis={axis} marks={marks} lines={lines} label={marks.map((mark) => mark.title).join("; ")} />
      <div class="values" aria-hidden="true">
        {row.runs.map((value) => (
          <div>
            {value ? (
              <>
                <b>{formatValue(value.value, unit)}</b> <span>{formatInterval(value.interval, unit)}</span>
              </>
            ) : (
              <span>no answers</span>
            )}
          </div>
        ))}
      </div>
    </div>
  );
}

function Runs({ benchmark }: { benchmark: Benchmark }) {
  return (
    <section aria-labelledby="runs-title">
      <h2 id="runs-title">{benchmark.runs.length > 1 ? "Runs" : "Run"}</h2>
      {benchmark.runs.map((run, index) => (
        <div class="run-card">
          <h3>
            <RunLetter index={index} /> <bdi>{run.name}</bdi>
          </h3>
          <dl>
            <dt>model</dt>
            <dd dir="auto">{run.model}</dd>
            {Object.entries(run.settings).map(([name, value]) => (
              <>
                <dt>{name}</dt>
                <dd dir="auto">{value}</dd>
              </>
            ))}
            <dt>coverage</dt>
            <dd>{run.coverage}</dd>
            <dt>problems</dt>
            <dd>{run.problems.length > 0 ? run.problems.join(", ") : "none"}</dd>
          </dl>
        </div>
      ))}
    </section>
  );
}

/** Return the axis of a unit ("%": 0 to 100; "0 to 5"), or one that holds all values. */
function axisOf({ unit }: Benchmark, rows: TaskRow[]): Axis {
  const format = (value: number) => String(Math.round(value * 1000) / 1000);
  const highest = unit === "%" ? 100 : Number(/^0 to (\d+)$/.exec(unit)?.[1] ?? NaN);
  if (!Number.isNaN(highest)) return { ...niceAxis(0, highest, format), to: highest };
  const values = rows.flatMap((row) => [
    ...row.runs.flatMap((each) => (each ? [each.value, ...(each.interval ?? [])] : [])),
    ...row.paper.map((each) => each.value),
  ]);
  return niceAxis(Math.min(0, ...values), Math.max(...values, 0), format);
}

function sentenceCase(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
