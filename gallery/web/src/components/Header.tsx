import { address, go, type State } from "../state";
import { letterOf } from "../select";
import type { Benchmark, Gallery } from "../types";
import { chosenPair } from "./Compare";
import { formatCount, formatDifference, formatInterval, formatP, formatValue } from "../format";
import { RunLetter } from "./Marks";

interface Props {
  gallery: Gallery;
  benchmark: Benchmark;
  state: State;
  onHelp: () => void;
  onCopy: () => void;
}

/** Title, benchmark, and in one line what came out: each run's mean, and the difference of the chosen pair. */
export function Header({ gallery, benchmark, state, onHelp, onCopy }: Props) {
  return (
    <header>
      <div class="title">
        <h1 dir="auto">{gallery.title}</h1>
        {gallery.benchmarks.length > 1 ? (
          <select
            aria-label="Benchmark"
            value={benchmark.name}
            onChange={(event) => go({ ...EMPTY, benchmark: event.currentTarget.value })}
          >
            {gallery.benchmarks.map((each) => (
              <option value={each.name}>{each.title}</option>
            ))}
          </select>
        ) : (
          benchmark.title !== gallery.title && <span class="muted wide-only">{benchmark.title}</span>
        )}
        <span class="muted wide-only">{formatCount(benchmark.samples.length)} samples</span>
        <span class="space" />
        {!state.sample && (
          <button class="wide-only" onClick={onCopy} title="Copy a link to this view (c)">
            Copy link
          </button>
        )}
        <button onClick={onHelp} aria-label="Help and short cuts" title="Help and short cuts (?)">
          ?
        </button>
      </div>
      <Summary benchmark={benchmark} state={state} />
    </header>
  );
}

function Summary({ benchmark, state }: { benchmark: Benchmark; state: State }) {
  const { measure, unit, overall } = benchmark;
  const pair = chosenPair(benchmark, state.pair);
  const difference = pair?.rows.at(-1);
  return (
    <div class="summary">
      <ul aria-label="Runs">
        {measure && (
          <li class="muted wide-only">
            {measure}
            {unit && ` (${unit})`}
          </li>
        )}
        {benchmark.runs.map((run, index) => {
          const value = overall.runs[index];
          return (
            <li title={run.model}>
              <RunLetter index={index} /> <bdi>{run.name}</bdi> {value && <b>{formatValue(value.value, unit)}</b>}{" "}
              <span class="muted">{value && formatInterval(value.interval, unit)}</span>
            </li>
          );
        })}
        {pair && difference && (
          <li>
            <b>
              {letterOf(pair.second)} − {letterOf(pair.first)}:
            </b>{" "}
            <b>{formatDifference(difference.difference, unit)}</b>{" "}
            <span class="muted">
              {formatInterval(difference.interval, unit)} {formatP(difference.p)}
            </span>
          </li>
        )}
      </ul>
      <a href={address({ sample: "", show: "results" })} class="to-results">
        By task
      </a>
    </div>
  );
}

// Tasks, runs and samples of another benchmark are others
const EMPTY = { sample: "", task: "", run: "", pair: "", show: "" };
