import {
  elementScroll,
  observeElementOffset,
  observeElementRect,
  Virtualizer,
  type VirtualizerOptions,
} from "@tanstack/virtual-core";
import { useEffect, useLayoutEffect, useReducer, useRef, useState } from "preact/hooks";
import { formatScore, formatSeconds } from "../format";
import { hasFilters, viewOf } from "../select";
import { address, clearFilters, follow, type State } from "../state";
import type { Answer, Benchmark, Sample } from "../types";
import { RunLetter, StatusMark } from "./Marks";

interface Props {
  benchmark: Benchmark;
  samples: Sample[];
  /** The index of the open sample, or -1. */
  place: number;
  state: State;
}

const ROW_HEIGHT = 82; // pixels, as in style.css

/** The samples, of which only those in sight are in the document. */
export function List({ benchmark, samples, place, state }: Props) {
  const scroller = useRef<HTMLDivElement>(null);
  const rows = useVirtualizer({
    count: samples.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => ROW_HEIGHT,
    overscan: 6,
  });
  useLayoutEffect(() => {
    if (place >= 0) rows.scrollToIndex(place, { align: "auto" });
  }, [place, samples]);
  // When a sample is closed, its row gets the focus that was in it, as soon as the row is there
  const last = useRef(-1);
  const wanted = useRef(-1);
  useEffect(() => {
    const closed = place < 0 && last.current >= 0;
    if (closed && document.activeElement === document.body) wanted.current = last.current;
    if (closed) rows.scrollToIndex(last.current, { align: "auto" });
    last.current = place;
  }, [place]);
  useEffect(() => {
    const row = scroller.current?.querySelector<HTMLElement>(`[aria-posinset="${wanted.current + 1}"] a`);
    if (!row) return;
    row.focus({ preventScroll: true });
    wanted.current = -1;
  });
  useLayoutEffect(() => {
    if (place < 0) scroller.current?.scrollTo(0, 0);
  }, [samples]);
  return (
    <div class="list" ref={scroller}>
      {samples.length === 0 && <Empty benchmark={benchmark} state={state} />}
      <ul style={{ height: `${rows.getTotalSize()}px` }} aria-label="Samples">
        {rows.getVirtualItems().map(({ index, start }) => {
          const sample = samples[index];
          return (
            sample && (
              <li
                key={sample.id}
                style={{ transform: `translateY(${start}px)` }}
                aria-setsize={samples.length}
                aria-posinset={index + 1}
              >
                <Row benchmark={benchmark} sample={sample} open={index === place} />
              </li>
            )
          );
        })}
      </ul>
    </div>
  );
}

function Row({ benchmark, sample, open }: { benchmark: Benchmark; sample: Sample; open: boolean }) {
  const seconds = benchmark.clips[sample.clip]?.seconds;
  const change = { sample: sample.id, show: "" };
  return (
    <a href={address(change)} onClick={(event) => follow(event, change)} aria-current={open ? "true" : undefined}>
      <span class="question" dir="auto">
        {sample.questions.join(" / ")}
      </span>
      <span class="answers">
        {sample.answers.map((answer, run) => (
          <span class="answer">
            {benchmark.runs.length > 1 && <RunLetter index={run} />}
            {answer === null && <span class="muted">no answer</span>}
            {answer &&
              (answer.status !== "scored" ? <StatusMark status={answer.status} /> : <Score answer={answer} />)}
            <bdi>{answer && shortAnswer(answer)}</bdi>
          </span>
        ))}
      </span>
      <span class="facts">
        <bdi>{sample.task}</bdi>
        {seconds != null && <span>{formatSeconds(seconds)}</span>}
        {sample.reference && (
          <span>
            reference: <bdi>{sample.reference}</bdi>
          </span>
        )}
      </span>
    </a>
  );
}

function Score({ answer }: { answer: Answer }) {
  return <b class="scored">{formatScore(answer.score ?? 0)}</b>;
}

function shortAnswer(answer: Answer): string {
  const text = answer.texts.join(" / ") || (answer.notes[0] ?? "");
  return text.slice(0, 120);
}

function Empty({ benchmark, state }: { benchmark: Benchmark; state: State }) {
  const view = viewOf(state, benchmark);
  if (hasFilters(state)) {
    return (
      <div class="empty">
        <p>No sample of this view matches the filters.</p>
        <button onClick={clearFilters}>Clear filters</button>
      </div>
    );
  }
  const sentence = {
    all: "This benchmark has no samples.",
    right: "No answer is right.",
    wrong: "No answer is wrong.",
    unreadable: "All clips could be read.",
    different: "The runs agree on all samples.",
  }[view];
  return <p class="empty">{sentence}</p>;
}

type Options = Pick<
  VirtualizerOptions<HTMLDivElement, HTMLLIElement>,
  "count" | "getScrollElement" | "estimateSize" | "overscan"
>;

/** What @tanstack/react-virtual is for React. */
function useVirtualizer(options: Options): Virtualizer<HTMLDivElement, HTMLLIElement> {
  const [, redraw] = useReducer((count: number) => count + 1, 0);
  const all = {
    ...options,
    observeElementRect,
    observeElementOffset,
    scrollToFn: elementScroll,
    onChange: () => redraw(undefined),
  };
  const [rows] = useState(() => new Virtualizer<HTMLDivElement, HTMLLIElement>(all));
  rows.setOptions(all);
  useEffect(() => rows._didMount(), []);
  useLayoutEffect(() => rows._willUpdate());
  return rows;
}
