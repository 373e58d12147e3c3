import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { formatTime } from "../format";
import type { Clip as ClipData, Strip } from "../types";

/** The video, if there is one, and the frames that the model saw; a click on a frame goes there in the video.
 *  `children` stand beside the video. */
export function Clip({ clip, children }: { clip: ClipData; children: ComponentChildren }) {
  const video = useRef<HTMLVideoElement>(null);
  const [broken, setBroken] = useState(false);
  const [now, setNow] = useState<number | null>(null);
  const start = clip.start ?? 0;
  const part = clip.start !== null || clip.end !== null ? `#t=${start}${clip.end === null ? "" : `,${clip.end}`}` : "";
  const seek = (time: number) => {
    if (video.current) video.current.currentTime = time;
  };
  return (
    <section class="clip" aria-label="Clip">
      {clip.problem && <p class="problem">{clip.problem}</p>}
      <div class="stage">
        {clip.video && !broken && (
          <video
            ref={video}
            src={clip.video + part}
            controls
            playsInline
            preload="metadata"
            aria-label={`The clip ${clip.name}`}
            onError={() => setBroken(true)}
            onTimeUpdate={(event) => setNow(event.currentTarget.currentTime)}
          />
        )}
        {children}
      </div>
      {broken && <p class="problem">This browser cannot play the clip {clip.video}. The frames below are from it.</p>}
      {clip.strip ? (
        <Frames strip={clip.strip} now={now} seek={clip.video && !broken ? seek : null} />
      ) : (
        !clip.problem && <p class="muted">The frames of this clip were not exported.</p>
      )}
    </section>
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
  const playing = now === null ? -1 : times.findLastIndex((time) => time !== null && time <= now + 0.01);
  return (
    <>
      <h3>{count === 1 ? "The frame" : `The ${count} frames`} that the model saw</h3>
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
    </>
  );
}
