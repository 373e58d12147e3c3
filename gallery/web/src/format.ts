import type { Interval } from "./types";

export function formatCount(count: number): string {
  return count.toLocaleString("en");
}

/** Return a value of a benchmark's unit: one digit after the point for "%", two for scores. */
export function formatValue(value: number, unit: string): string {
  return value.toFixed(unit === "%" ? 1 : 2).replace("-", "−");
}

export function formatInterval(interval: Interval | null, unit: string): string {
  return interval ? `[${interval.map((end) => formatValue(end, unit)).join(", ")}]` : "";
}

export function formatDifference(value: number, unit: string): string {
  return (value > 0 ? "+" : "") + formatValue(value, unit);
}

export function formatP(p: number): string {
  return p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`;
}

export function formatScore(score: number): string {
  return String(Math.round(score * 1000) / 1000);
}

/** Return seconds as "7.5 s" or "1:05 min". */
export function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds * 10) / 10} s`;
  const rounded = Math.round(seconds);
  return `${Math.floor(rounded / 60)}:${String(rounded % 60).padStart(2, "0")} min`;
}

/** Return the place of a frame: "0:07.50". */
export function formatTime(seconds: number): string {
  const hundredths = Math.round(seconds * 100);
  const minutes = Math.floor(hundredths / 6000);
  return `${minutes}:${((hundredths % 6000) / 100).toFixed(2).padStart(5, "0")}`;
}

export function formatDate(time: string): string {
  return new Date(time).toLocaleString("en", { dateStyle: "long", timeStyle: "short" });
}
