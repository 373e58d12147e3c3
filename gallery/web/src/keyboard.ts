import { useEffect, useRef } from "preact/hooks";

/** The short cuts, as the help lists them. */
export const SHORTCUTS: [keys: string[], what: string][] = [
  [["j", "↓", "→"], "next sample"],
  [["k", "↑", "←"], "previous sample"],
  [["1", "2", "3", "4", "5"], "view: all, right, wrong, unreadable, different"],
  [["/"], "search"],
  [["space", "p"], "play or pause the clip"],
  [["c"], "copy a link to this sample, or to this view"],
  [["r"], "results of all tasks"],
  [["Esc"], "close help, leave the search, close the sample"],
  [["?"], "this help"],
];

const NAMES: Record<string, string> = {
  j: "next",
  ArrowDown: "next",
  ArrowRight: "next",
  k: "previous",
  ArrowUp: "previous",
  ArrowLeft: "previous",
  "1": "view 0",
  "2": "view 1",
  "3": "view 2",
  "4": "view 3",
  "5": "view 4",
  "/": "search",
  " ": "play",
  p: "play",
  c: "copy",
  r: "results",
  Escape: "close",
  "?": "help",
};

const FIELDS = "input, select, textarea";

/** Call `act` with the name of a short cut that was pressed; it returns whether there was something to do. */
export function useShortcuts(act: (name: string) => boolean): void {
  const latest = useRef(act);
  latest.current = act; // at once: the next key may come before an effect runs
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const name = NAMES[event.key];
      const target = event.target as Element;
      if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
      if (document.querySelector("dialog[open]")) return; // which closes itself on Escape
      if (target.matches(FIELDS) && name !== "close") return;
      if (event.key.startsWith("Arrow") && target.matches("video")) return; // which seeks
      if (event.key === " " && target.matches("button, summary, video")) return; // which are pressed by it
      if (latest.current(name)) event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}
