import { FILTERS, type State } from "./state";
import type { Answer, Benchmark, Sample } from "./types";

export const VIEWS = ["all", "right", "wrong", "unreadable", "different"] as const;
export type View = (typeof VIEWS)[number];

export const SORTS: Record<string, string> = {
  order: "order of the benchmark",
  disagreement: "disagreement, largest first",
  score: "score, lowest first",
  seconds: "length of clip, shortest first",
  task: "task",
};

export interface Selection {
  shown: Sample[];
  /** How many samples each view would show with the same filters. */
  counts: Record<View, number>;
}

/** Return the samples that view and filters leave, sorted, and the counts of all views. */
export function select(benchmark: Benchmark, state: State): Selection {
  const run = runIndex(state.run, benchmark);
  const view = viewOf(state, benchmark);
  const matches = filter(benchmark, state, run);
  const counts = { all: 0, right: 0, wrong: 0, unreadable: 0, different: 0 };
  const shown: Sample[] = [];
  for (const sample of benchmark.samples) {
    if (!matches(sample)) continue;
    for (const each of VIEWS) {
      if (!belongs(sample, each, run)) continue;
      counts[each] += 1;
      if (each === view) shown.push(sample);
    }
  }
  return { shown: sort(shown, benchmark, sortOf(state, benchmark), run), counts };
}

export function viewOf(state: State, benchmark: Benchmark): View {
  const view = VIEWS.find((each) => each === state.view) ?? "all";
  return view === "different" && benchmark.runs.length < 2 ? "all" : view;
}

export function sortOf(state: State, benchmark: Benchmark): string {
  if (state.sort in SORTS) return state.sort;
  return viewOf(state, benchmark) === "different" ? "disagreement" : "order";
}

export function hasFilters(state: State): boolean {
  return FILTERS.some((key) => state[key] !== "");
}

/** Return the index of the run with a letter, or null for any run. */
export function runIndex(letter: string, benchmark: Benchmark): number | null {
  const index = letter.charCodeAt(0) - 65;
  return letter.length === 1 && index >= 0 && index < benchmark.runs.length ? index : null;
}

export function letterOf(index: number): string {
  return String.fromCharCode(65 + index);
}

function belongs(sample: Sample, view: View, run: number | null): boolean {
  if (view === "all") return true;
  if (view === "different") return sample.disagreement > 0;
  return answersOf(sample, run).some((answer) => answer?.status === view);
}

function filter(benchmark: Benchmark, state: State, run: number | null): (sample: Sample) => boolean {
  const text = state.text.trim().toLowerCase();
  const seconds = range(state.longer, state.shorter);
  const scores = range(state.above, state.below);
  return (sample) =>
    (!state.task || sample.task === state.task) &&
    (!seconds || seconds(benchmark.clips[sample.clip]?.seconds ?? null)) &&
    (!scores || answersOf(sample, run).some((answer) => scores(answer?.score ?? null))) &&
    (!text || textOf(sample).includes(text));
}

function answersOf(sample: Sample, run: number | null): (Answer | null | undefined)[] {
  return run === null ? sample.answers : [sample.answers[run]];
}

function range(low: string, high: string): ((value: number | null) => boolean) | null {
  if (low === "" && high === "") return null;
  const [from, to] = [low === "" ? -Infinity : Number(low), high === "" ? Infinity : Number(high)];
  return (value) => value !== null && value >= from && value <= to;
}

const texts = new WeakMap<Sample, string>();

/** Return question, options, reference, answers and id of a sample in lower case, to search in. */
export function textOf(sample: Sample): string {
  let text = texts.get(sample);
  if (text === undefined) {
    const answers = sample.answers.flatMap((answer) => [...(answer?.texts ?? []), answer?.parsed ?? ""]);
    text = [...sample.questions, ...sample.options, sample.reference, ...answers, sample.id].join("\n").toLowerCase();
    texts.set(sample, text);
  }
  return text;
}

function sort(samples: Sample[], benchmark: Benchmark, by: string, run: number | null): Sample[] {
  const score = (sample: Sample) => Math.min(...answersOf(sample, run).map((answer) => answer?.score ?? Infinity));
  const seconds = (sample: Sample) => benchmark.clips[sample.clip]?.seconds ?? Infinity;
  if (by === "disagreement") return samples.sort((a, b) => b.disagreement - a.disagreement);
  if (by === "score") return sortBy(samples, score);
  if (by === "seconds") return sortBy(samples, seconds);
  if (by === "task") {
    const places = new Map(benchmark.tasks.map((task, place) => [task.name, place]));
    return sortBy(samples, (sample) => places.get(sample.task) ?? Infinity);
  }
  return samples;
}

function sortBy(samples: Sample[], key: (sample: Sample) => number): Sample[] {
  const keys = new Map(samples.map((sample) => [sample, key(sample)]));
  const compare = (a: number, b: number) => (a === b ? 0 : a - b); // Infinity - Infinity is no number
  return samples.sort((a, b) => compare(keys.get(a)!, keys.get(b)!));
}
