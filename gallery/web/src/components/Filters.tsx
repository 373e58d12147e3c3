import { useState } from "preact/hooks";
import { formatCount } from "../format";
import { hasFilters, letterOf, type Selection, SORTS, sortOf, type View, viewOf, VIEWS } from "../select";
import { address, clearFilters, follow, go, type State } from "../state";
import type { Benchmark } from "../types";

interface Props {
  benchmark: Benchmark;
  state: State;
  selection: Selection;
}

const TITLES: Record<View, string> = {
  all: "All",
  right: "Right",
  wrong: "Wrong",
  unreadable: "Unreadable",
  different: "Different",
};

export function Filters({ benchmark, state, selection }: Props) {
  const several = benchmark.runs.length > 1;
  const scored = benchmark.samples.some((sample) => sample.answers.some((answer) => answer?.score != null));
  const [open, setOpen] = useState(() => matchMedia("(min-width: 800px)").matches);
  const view = viewOf(state, benchmark);
  const choose = (key: keyof State) => (event: { currentTarget: HTMLSelectElement }) =>
    go({ [key]: event.currentTarget.value });
  return (
    <div class="filters" role="search">
      <nav class="views" aria-label="Views">
        {VIEWS.filter((each) => several || each !== "different").map((each) => (
          <a
            href={address({ view: each, show: "" })}
            onClick={(event) => follow(event, { view: each, show: "" })}
            aria-current={each === view ? "page" : undefined}
          >
            {TITLES[each]} <span class="count">{formatCount(selection.counts[each])}</span>
          </a>
        ))}
      </nav>
      <input
        id="search"
        type="search"
        dir="auto"
        placeholder="Search questions, references, answers"
        aria-label="Search questions, references, answers"
        value={state.text}
        onInput={(event) => go({ text: event.currentTarget.value }, "replace")}
      />
      <details open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>Filters</summary>
        <div class="fields">
          <label>
            Task
            <select value={state.task} onChange={choose("task")}>
              <option value="">all tasks</option>
              {benchmark.tasks.map((task) => (
                <option value={task.name}>{task.name}</option>
              ))}
            </select>
          </label>
          {several && (
            <label>
              Run
              <select value={state.run} onChange={choose("run")}>
                <option value="">any run</option>
                {benchmark.runs.map((run, index) => (
                  <option value={letterOf(index)}>
                    {letterOf(index)} {run.name}
                  </option>
                ))}
              </select>
            </label>
          )}
          <Range title="Clip, in seconds" low="longer" high="shorter" state={state} />
          {scored && <Range title="Score" low="above" high="below" state={state} />}
        </div>
      </details>
      <p class="shown">
        <span role="status">
          {formatCount(selection.shown.length)} of {formatCount(benchmark.samples.length)} samples
        </span>
        {hasFilters(state) && selection.shown.length > 0 && <button onClick={clearFilters}>Clear filters</button>}
        <span class="space" />
        <span class="sort">
          <span aria-hidden="true">Sort by</span>
          <select aria-label="Sort by" value={sortOf(state, benchmark)} onChange={choose("sort")}>
            {Object.entries(SORTS)
              .filter(([name]) => (name !== "disagreement" || several) && (name !== "score" || scored))
              .map(([name, title]) => (
                <option value={name}>{title}</option>
              ))}
          </select>
        </span>
      </p>
    </div>
  );
}

function Range({ title, low, high, state }: { title: string; low: keyof State; high: keyof State; state: State }) {
  const field = (key: keyof State, word: string) => (
    <input
      type="number"
      min="0"
      step="any"
      placeholder={word}
      aria-label={`${title}, ${word}`}
      value={state[key]}
      onInput={(event) => go({ [key]: event.currentTarget.value }, "replace")}
    />
  );
  return (
    <fieldset>
      <legend>{title}</legend>
      {field(low, "from")} – {field(high, "to")}
    </fieldset>
  );
}
