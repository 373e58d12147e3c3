import { formatCount } from "../format";
import { letterOf } from "../select";
import { address, follow } from "../state";
import type { Status } from "../types";

const PATHS: Record<Status, string> = {
  right: "M3.5 8.5l3 3 6-7",
  wrong: "M4.5 4.5l7 7m0-7l-7 7",
  unreadable: "M5.5 6a2.5 2.5 0 1 1 3.6 2.2C8.3 8.7 8 9 8 10m0 2.2v.3",
  scored: "M8 8h.01",
  unscored: "M4 8h8",
};

/** A tick, a cross, a dot, a question mark or a line. */
export function StatusMark({ status, spoken = true }: { status: Status; spoken?: boolean }) {
  const label = spoken ? { role: "img" as const, "aria-label": status } : { "aria-hidden": true };
  return (
    <svg class={`mark ${status}`} viewBox="0 0 16 16" {...label}>
      <path d={PATHS[status]} />
    </svg>
  );
}

/** The letter of a run in its colour. */
export function RunLetter({ index }: { index: number }) {
  return <span class={`letter ${runClass(index)}`}>{letterOf(index)}</span>;
}

/** Return the class of a run's colour; the seventh run has the first one's. */
export function runClass(index: number): string {
  return `run-${index % 6}`;
}

/** The name of a task, as a link to its samples; an empty name stands for all tasks. */
export function TaskName({ name, samples }: { name: string; samples: number | null }) {
  const change = { task: name, sample: "", show: "" };
  return (
    <span class="task">
      <a href={address(change)} onClick={(event) => follow(event, change)} dir="auto">
        {name || "all"}
      </a>{" "}
      <Count samples={samples} />
    </span>
  );
}

export function Count({ samples }: { samples: number | null }) {
  return <span class="muted">{samples !== null && formatCount(samples)}</span>;
}
