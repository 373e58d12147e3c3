import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { formatTime } from "../format";
import type { Benchmark, Clip as ClipData, Sample, Strip } from "../types";
import { RunLetter } from "./Marks";

interface Props {
  benchmark: Benchmark;
  sample: Sample;
  /** What stands beside the video. */
  children: ComponentChildren;
}

/** The video, if there is one, and the frames that each run saw; a click on a frame goes there in the video. */
export function Clip({ benchmark, sample, children }: Props) {
  const video = useRef<HTMLVideoElement>(null);
  const [broken, setBroken] = useState(false);
  const [now, setNow] = useState<number | null>(null);
  const clip = benchmark.clips[sample.clip];
  if (!clip) return <div class="side">{children}</div>;
  const seek = (time: number) => {
    if (video.current) video.current.currentTime = Math.max(0, time - clip.video_start);
  };
  return (
    <div class="columns">
      <section class="video" aria-label="Clip">
        {clip.problem && <p class="problem">{clip.problem}</p>}
        {broken && <p class="problem">This browser cannot play {clip.video}.</p>}
        {clip.video && !broken && (
          <video
            ref={video}
            src={clip.video}
            controls
            playsInline
            preload="metadata"
            aria-label={`The clip ${clip.name}`}
            onError={() => setBroken(true)}
            onTimeUpdate={(event) => setNow(event.currentTarget.currentTime + clip.video_start)}
          />
        )}
      </section>
      <div class="side">{children}</div>
      <section class="strips" aria-label="Frames">
        {seenFrames(benchmark, sample, clip).map(([seen, runs]) => (
          <div>
            <h3>
              <Title strip={seen.strip} runs={runs} all={benchmark.runs.length} />
            </h3>
            {seen.strip && <Frames strip={seen.strip} now={now} seek={clip.video && !broken ? seek : null} />}
          </div>
        ))}
      </section>
    </div>
  );
}

/** List the strips of a sample, each with the runs that saw it; no run saw the sample's own if each has another one. */
function seenFrames(benchmark: Benchmark, sample: Sample, clip: ClipData): [ClipData, number[]][] {
  const seen = new Map<ClipData, number[]>([[clip, []]]);
  sample.answers.forEach((answer, run) => {
    const own = answer && benchmark.clips[answer.clip ?? sample.clip];
    if (own) seen.set(own, [...(seen.get(own) ?? []), run]);
  });
  return [...seen].filter(([each, runs]) => each.strip || (runs.length > 0 && !each.problem));
}

function Title({ strip, runs, all }: { strip: Strip | null; runs: number[]; all: number }) {
  const frames = !strip ? "no frames" : strip.count === 1 ? "1 frame" : `${strip.count} frames`;
  if (runs.length === 0) return <>{frames} of the clip</>;
  if (all === 1) return <>The model saw {frames}</>;
  if (runs.length === all) return <>All runs saw the same {frames}</>;
  return (
    <>
      {runs.map((run) => (
        <>
          <RunLetter index={run} />{" "}
        </>
      ))}
      saw {frames}
    </>
  );
}

interface FramesProps {
  strip: Strip;
  now: number | null;
  seek: ((time: number) => void) | null;
}

function Frames({ strip, now, seek }: FramesProps) {
  const [missing, setMissing] = useState(false);
  if (missing) return <p class="problem">The frames could not be read from {strip.file}.</p>;
  const { count, width, height, times } = strip;
  const passed = times.map((time) => (time !== null && now !== null && time <= now + 0.01 ? time : -1));
  const playing = Math.max(...passed) < 0 ? -1 : passed.indexOf(Math.max(...passed));
  return (
    <ol class="frames">
      {Array.from({ length: count }, (_, index) => {
        const time = times[index] ?? null;
        const where = time === null ? "" : ` at ${formatTime(time)}`;
        const image = (
          <img
            src={strip.file}
            alt={`Frame ${index + 1} of ${count}${where}`}
            style={{
              aspectRatio: `${width} / ${height}`,
              objectPosition: `${count > 1 ? (100 * index) / (count - 1) : 0}% 0`,
            }}
            onError={() => setMissing(true)}
          />
        );
        return (
          <li class={index === playing ? "playing" : undefined}>
            {seek && time !== null ? (
              <button onClick={() => seek(time)} title="Go there in the clip">
                {image}
              </button>
            ) : (
              image
            )}
            <span class="time" aria-hidden="true">
              {time === null ? index + 1 : formatTime(time)}
            </span>
          </li>
        );
      })}
    </ol>
  );
}
