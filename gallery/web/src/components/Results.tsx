import { formatInterval, formatValue } from "../format";
import { address, follow, type State } from "../state";
import { letterOf, viewOf } from "../select";
import type { Benchmark, Run, TaskRow } from "../types";
import { type Axis, AxisNumbers, Chart, LegendMark, type Mark, niceAxis } from "./Chart";
import { Compare } from "./Compare";
import { Count, RunLetter, runClass, TaskName } from "./Marks";

/** All tasks of a benchmark: each run with its interval, beside the paper's rows; then the paired comparison. */
export function Results({ benchmark, state }: { benchmark: Benchmark; state: State }) {
  const { measure, unit, tasks, aspects, overall } = benchmark;
  const title = measure ? measure.charAt(0).toUpperCase() + measure.slice(1) + (unit && ` (${unit})`) : "";
  const rows = tasks.length > 1 ? [...tasks, overall] : [overall];
  const different = viewOf(state, benchmark) === "different";
  const comparison = <Compare benchmark={benchmark} state={state} />;
  const back = { show: "" };
  return (
    <article class="results">
      <a class="back" href={address(back)} onClick={(event) => follow(event, back)}>
        ‹ Samples
      </a>
      {different && comparison}
      {measure ? (
        <Scores title={rows.length > 1 ? `${title} by task` : title} benchmark={benchmark} rows={rows} links />
      ) : (
        <p>These answers are not scored.</p>
      )}
      {aspects.length > 0 && <Scores title={`${title} by aspect`} benchmark={benchmark} rows={aspects} />}
      {!different && comparison}
      <Runs benchmark={benchmark} />
    </article>
  );
}

interface ScoresProps {
  title: string;
  benchmark: Benchmark;
  rows: TaskRow[];
  /** Whether the rows are tasks, whose samples can be listed. */
  links?: boolean;
}

function Scores({ title, benchmark, rows, links = false }: ScoresProps) {
  const { unit, runs, overall } = benchmark;
  const papers = [...new Set(rows.flatMap((row) => row.paper.map((each) => each.name)))];
  const chance = rows.some((row) => row.chance !== null);
  const axis = axisOf(unit, rows);
  const lines = runs.length + (papers.length > 0 ? 1 : 0);
  return (
    <section aria-label={title}>
      <h2>{title}</h2>
      <ul class="legend" aria-label="Legend">
        {runs.map((run, index) => (
          <li>
            <RunLetter index={index} /> <bdi>{run.name}</bdi>
          </li>
        ))}
        {papers.map((name, shape) => (
          <li>
            <LegendMark kind="paper" shape={shape} /> <bdi>{name}</bdi> <span class="muted">(paper)</span>
          </li>
        ))}
        {chance && (
          <li>
            <LegendMark kind="chance" /> chance
          </li>
        )}
      </ul>
      <div class="rows">
        {rows.map((row) => {
          const marks = marksOf(row, benchmark, papers);
          return (
            <div class={row === overall ? "row all" : "row"}>
              {links ? (
                <TaskName name={row === overall ? "" : row.name} samples={row.samples} />
              ) : (
                <span class="task">
                  <bdi>{row.name}</bdi> <Count samples={row.samples} />
                </span>
              )}
              <Chart axis={axis} marks={marks} lines={lines} label={marks.map((mark) => mark.title).join("; ")} />
              <div class="values" aria-hidden="true">
                {row.runs.map((value) => (
                  <div>
                    <b>{value && formatValue(value.value, unit)}</b>{" "}
                    <span>{value ? formatInterval(value.interval, unit) : "no score"}</span>
                  </div>
                ))}
              </div>
            </div>
          );
        })}
        <div class="row">
          <span />
          <AxisNumbers axis={axis} />
        </div>
      </div>
      <Numbers rows={rows} runs={runs} papers={papers} unit={unit} chance={chance} />
      <p class="muted note">
        Dots are means, bars their 95 % intervals.{links && rows.length > 1 && " A click on a task shows its samples."}
      </p>
    </section>
  );
}

/** The same in numbers. */
function Numbers({ rows, runs, papers, unit, chance }: NumbersProps) {
  const number = (value: number | null | undefined) => (value == null ? "" : formatValue(value, unit));
  return (
    <details class="numbers">
      <summary>All numbers</summary>
      <div class="scroll" tabIndex={0} role="region" aria-label="All numbers">
        <table>
          <thead>
            <tr>
              <td />
              {[...runs.map((run) => run.name), ...papers, ...(chance ? ["chance"] : [])].map((name) => (
                <th scope="col">
                  <bdi>{name}</bdi>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <tr>
                <th scope="row">
                  <bdi>{row.name}</bdi>
                </th>
                {row.runs.map((value) => (
                  <td>
                    {number(value?.value)} <span class="muted">{formatInterval(value?.interval ?? null, unit)}</span>
                  </td>
                ))}
                {papers.map((name) => (
                  <td>{number(row.paper.find((each) => each.name === name)?.value)}</td>
                ))}
                {chance && <td>{number(row.chance)}</td>}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </details>
  );
}

interface NumbersProps {
  rows: TaskRow[];
  runs: Run[];
  papers: string[];
  unit: string;
  chance: boolean;
}

/** Return each run's mean on a line of its own, the paper's on one below them, and chance through all lines. */
function marksOf(row: TaskRow, { runs, unit }: Benchmark, papers: string[]): Mark[] {
  const means = row.runs.flatMap((value, run): Mark[] => {
    if (!value) return [];
    const numbers = `${formatValue(value.value, unit)} ${formatInterval(value.interval, unit)}`;
    return [{ ...value, kind: runClass(run), line: run, title: `${letterOf(run)} ${runs[run]?.name}: ${numbers}` }];
  });
  const published = row.paper.map(({ name, value }): Mark => {
    const title = `${name} (paper): ${formatValue(value, unit)}`;
    return { value, interval: null, kind: "paper", shape: papers.indexOf(name), line: runs.length, title };
  });
  if (row.chance === null) return [...means, ...published];
  const title = `chance: ${formatValue(row.chance, unit)}`;
  return [{ value: row.chance, interval: null, kind: "chance", line: 0, title }, ...means, ...published];
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
            {Object.entries({ model: run.model, ...run.settings }).map(([name, value]) => (
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
function axisOf(unit: string, rows: TaskRow[]): Axis {
  const format = (value: number) => String(Math.round(value * 1000) / 1000);
  const highest = unit === "%" ? 100 : Number(/^0 to (\d+)$/.exec(unit)?.[1] ?? 0);
  if (highest > 0) {
    const step = [25, 5, 2, 1].find((each) => highest % each === 0 && highest / each >= 4) ?? highest;
    const ticks = Array.from({ length: highest / step + 1 }, (_, index) => index * step);
    return { from: 0, to: highest, ticks, format };
  }
  const values = rows.flatMap((row) => [
    ...row.runs.flatMap((each) => (each ? [each.value, ...(each.interval ?? [])] : [])),
    ...row.paper.map((each) => each.value),
  ]);
  return niceAxis(Math.min(0, ...values), Math.max(...values, 0), format);
}
