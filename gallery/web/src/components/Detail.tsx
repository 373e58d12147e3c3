import { useEffect, useRef } from "preact/hooks";
import { formatCount, formatScore, formatSeconds } from "../format";
import { address, follow } from "../state";
import { letterOf } from "../select";
import type { Answer, Benchmark, Clip as ClipData, Gallery, Run, Sample } from "../types";
import { Clip } from "./Clip";
import { RunLetter, StatusMark } from "./Marks";

interface Props {
  gallery: Gallery;
  benchmark: Benchmark;
  sample: Sample;
  /** The sample's index in the list, or -1. */
  place: number;
  count: number;
  onStep: (by: number) => void;
  onCopy: () => void;
}

export function Detail({ gallery, benchmark, sample, place, count, onStep, onCopy }: Props) {
  const clip = benchmark.clips[sample.clip];
  const chat = clip && chatAddress(gallery.chat, clip, sample);
  const closed = { sample: "" };
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    // On a phone the list is gone, and with it what had the focus
    if (document.activeElement === document.body) heading.current?.focus({ preventScroll: true });
  }, []);
  return (
    <article class="sample">
      <div class="toolbar">
        <a class="back" href={address(closed)} onClick={(event) => follow(event, closed)}>
          ‹ Samples
        </a>
        <a class="close" href={address(closed)} onClick={(event) => follow(event, closed)}>
          ‹ Results
        </a>
        <span class="muted" role="status">
          {place < 0 ? "not in this list" : `${formatCount(place + 1)} of ${formatCount(count)}`}
        </span>
        <span class="space" />
        <button onClick={() => onStep(-1)} disabled={place < 1} title="Previous sample (k)">
          Previous
        </button>
        <button onClick={() => onStep(1)} disabled={count === 0 || place === count - 1} title="Next sample (j)">
          Next
        </button>
        <button onClick={onCopy} title="Copy a link to this sample (c)">
          Copy link
        </button>
        {chat && (
          <a class="button" href={chat} target="_blank" rel="noreferrer">
            Ask this in the chat
          </a>
        )}
      </div>
      {sample.questions.map((question, index) => (
        <h2 dir="auto" ref={index === 0 ? heading : undefined} tabIndex={-1}>
          {question}
        </h2>
      ))}
      <p class="facts">
        <bdi>{sample.task}</bdi>
        <span>
          sample <bdi>{sample.id}</bdi>
        </span>
        {clip && <bdi>{clip.name}</bdi>}
        {clip && <span>{lengthOf(clip)}</span>}
      </p>
      <Clip benchmark={benchmark} sample={sample}>
        <Reference sample={sample} />
        {sample.answers.map((answer, index) => (
          <AnswerCard run={benchmark.runs[index]!} index={index} answer={answer} sample={sample} />
        ))}
      </Clip>
    </article>
  );
}

function Reference({ sample }: { sample: Sample }) {
  if (sample.options.length === 0) {
    return sample.reference ? (
      <section>
        <h3>Reference</h3>
        <p dir="auto" class="long">
          {sample.reference}
        </p>
      </section>
    ) : null;
  }
  const place = sample.options.indexOf(sample.reference);
  return (
    <section>
      <h3>Options</h3>
      <ul class="options">
        {sample.options.map((option, index) => (
          <li class={index === place ? "is-reference" : undefined}>
            <span class="muted">({letterOf(index)})</span> <bdi>{option}</bdi>
            {index === place && <span class="tag">reference</span>}
            {sample.answers.map(
              (answer, run) => answer?.parsed === `option (${letterOf(index)})` && <RunLetter index={run} />,
            )}
          </li>
        ))}
      </ul>
      {place < 0 && sample.reference && (
        <p>
          Reference: <bdi>{sample.reference}</bdi>
        </p>
      )}
    </section>
  );
}

interface CardProps {
  run: Run;
  index: number;
  answer: Answer | null;
  sample: Sample;
}

function AnswerCard({ run, index, answer, sample }: CardProps) {
  return (
    <section class="answer-card" aria-label={`Answer of ${letterOf(index)} ${run.name}`}>
      <h3>
        <RunLetter index={index} /> <bdi>{run.name}</bdi>
        <span class="space" />
        {answer && (
          <span class={`status ${answer.status}`}>
            <StatusMark status={answer.status} spoken={false} /> {answer.status}
            {answer.score !== null && `: ${formatScore(answer.score)}`}
          </span>
        )}
      </h3>
      {answer === null ? (
        <p class="muted">This run has no answer to this sample.</p>
      ) : (
        <AnswerText answer={answer} sample={sample} />
      )}
    </section>
  );
}

function AnswerText({ answer, sample }: { answer: Answer; sample: Sample }) {
  return (
    <>
      {answer.texts.map((text, index) => (
        <div>
          {sample.questions.length > 1 && (
            <p class="muted small" dir="auto">
              {sample.questions[index]}
            </p>
          )}
          {text ? (
            <p class="long raw" dir="auto">
              {text}
            </p>
          ) : (
            <p class="muted">The answer is empty.</p>
          )}
        </div>
      ))}
      {answer.parsed !== null && (
        <p class="small">
          <span class="muted">Read as:</span> <bdi>{answer.parsed}</bdi>
        </p>
      )}
      {answer.notes.length > 0 && (
        <ul class="notes">
          {answer.notes.map((note) => (
            <li dir="auto">{note}</li>
          ))}
        </ul>
      )}
      {answer.verdicts.length > 0 && (
        <dl class="verdicts" aria-label="Verdicts of the judge">
          {answer.verdicts.map(({ aspect, score, right, reason }) => (
            <div>
              <dt>
                {right !== null && <StatusMark status={right ? "right" : "wrong"} />} {aspect}
                {score !== null && <b> {formatScore(score)}</b>}
              </dt>
              <dd dir="auto">{reason ?? "The judge gave no reason."}</dd>
            </div>
          ))}
        </dl>
      )}
    </>
  );
}

function lengthOf({ start, end, seconds }: ClipData): string {
  const part =
    start !== null || end !== null
      ? `${formatSeconds(start ?? 0)} to ${end === null ? "the end" : formatSeconds(end)}`
      : "";
  const length = seconds === null ? "" : formatSeconds(seconds);
  return part && length ? `${length} (${part})` : part || length;
}

/** Return the address that opens a chat with this clip, its question typed in but not sent; null if it has no address. */
function chatAddress(chat: string | null, clip: ClipData, sample: Sample): string | null {
  const isAddress = (text: string | null) => text !== null && /^https?:\/\//.test(text);
  if (!isAddress(chat) || (!clip.video && !isAddress(clip.name))) return null;
  const address = new URL(chat!);
  const set = (name: string, value: string | number) => address.searchParams.set(name, String(value));
  set("video", clip.video ? new URL(clip.video, location.href).href.split("#")[0]! : clip.name);
  set("question", sample.questions[0] ?? "");
  if (clip.strip) set("num_frames", clip.strip.count);
  const begin = clip.video ? clip.video_start : 0;
  if (clip.start !== null && clip.start > begin) set("start", clip.start - begin);
  if (clip.end !== null) set("end", clip.end - begin);
  return address.href;
}
