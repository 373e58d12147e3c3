/** The data of a gallery: `pllava gallery` writes it to data/gallery.js. */
export interface Gallery {
  version: 1;
  title: string;
  created: string;
  /** The address of a `pllava demo`. */
  chat: string | null;
  benchmarks: Benchmark[];
}

export interface Benchmark {
  name: string;
  title: string;
  measure: string | null;
  /** All values below are in this unit: "%", "0 to 5", "0 to 10" or "". */
  unit: string;
  runs: Run[];
  tasks: TaskRow[];
  /** Of a judge that grades several; else none. */
  aspects: TaskRow[];
  overall: TaskRow;
  comparisons: Comparison[];
  clips: Clip[];
  samples: Sample[];
}

export interface Run {
  name: string;
  model: string;
  settings: Record<string, string>;
  coverage: string;
  problems: string[];
}

export type Interval = [number, number];

export interface Value {
  value: number;
  interval: Interval | null;
}

export interface TaskRow {
  name: string;
  samples: number | null;
  /** One per run. */
  runs: (Value | null)[];
  paper: { name: string; value: number }[];
  /** What guessing gives. */
  chance: number | null;
}

export interface Comparison {
  /** Indices of runs. */
  first: number;
  second: number;
  /** One per task, then one over all. */
  rows: Difference[];
}

export interface Difference {
  task: string;
  samples: number;
  /** Of the second run from the first. */
  difference: number;
  interval: Interval | null;
  p: number;
}

export interface Clip {
  name: string;
  /** In seconds; null: the whole file. */
  start: number | null;
  end: number | null;
  seconds: number | null;
  strip: Strip | null;
  /** An address, which may end in the part to play, "#t=3,5". */
  video: string | null;
  /** The time in the clip at which the video begins, in seconds. */
  video_start: number;
  problem: string | null;
}

/** The sampled frames side by side in one image; width and height are those of one frame. */
export interface Strip {
  file: string;
  count: number;
  width: number;
  height: number;
  times: (number | null)[];
}

export interface Sample {
  id: string;
  task: string;
  /** An index of the benchmark's clips. */
  clip: number;
  questions: string[];
  options: string[];
  reference: string;
  /** 0: all runs are equal. */
  disagreement: number;
  /** One per run; null: the run lacks the sample. */
  answers: (Answer | null)[];
}

/** "scored": with a number only; "unreadable": the clip could not be read. */
export type Status = "right" | "wrong" | "scored" | "unreadable" | "unscored";

export interface Answer {
  /** One per question. */
  texts: string[];
  /** How the rule read the answer, in words; "option (B)" is one of the options. */
  parsed: string | null;
  status: Status;
  score: number | null;
  notes: string[];
  verdicts: Verdict[];
  /** The clip with the frames that this run saw; null: the sample's. */
  clip: number | null;
}

export interface Verdict {
  aspect: string;
  score: number | null;
  right: boolean | null;
  reason: string | null;
}

declare global {
  interface Window {
    PLLAVA_GALLERY?: Gallery;
  }
}
