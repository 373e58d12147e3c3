/** What the page shows. All of it stands in the address, so that each state can be linked. */
export const DEFAULTS = {
  benchmark: "",
  view: "all",
  run: "", // a letter; empty: any run
  task: "",
  text: "",
  shorter: "", // seconds: clips at most this long
  longer: "", // seconds: clips at least this long
  above: "", // the lowest score
  below: "", // the highest score
  sort: "",
  pair: "", // two letters, "AB"
  show: "", // "results": on a phone, the results instead of the list
  sample: "",
};
export type State = typeof DEFAULTS;
type Key = keyof State;

export const FILTERS: Key[] = ["task", "text", "shorter", "longer", "above", "below"];

const KEYS = Object.keys(DEFAULTS) as Key[];
const WAIT = 250; // milliseconds: browsers refuse more than about a hundred changes of the address in half a minute
let state: State = read();
let timer: number | undefined;
let redraw: () => void = () => {};

export function current(): State {
  return state;
}

/** Change the state and draw the page. "push" makes a step that the back button undoes. */
export function go(change: Partial<State>, how: "push" | "replace" = "push"): void {
  if (how === "push") {
    flush();
    state = { ...state, ...change };
    history.pushState(null, "", address());
  } else {
    state = { ...state, ...change };
    clearTimeout(timer);
    timer = window.setTimeout(flush, WAIT);
  }
  redraw();
}

/** Return the address of a state that differs from this one by `change`: "#view=wrong&sample=12". */
export function address(change: Partial<State> = {}): string {
  const wanted = { ...state, ...change };
  const changed = KEYS.filter((key) => wanted[key] !== DEFAULTS[key]);
  return `#${new URLSearchParams(changed.map((key) => [key, wanted[key]]))}`;
}

/** Write the state to the address now. */
export function flush(): void {
  if (timer === undefined) return;
  clearTimeout(timer);
  timer = undefined;
  history.replaceState(null, "", address());
}

/** Call `draw` after each change of the state, also by the back button or by an edited address. */
export function listen(draw: () => void): void {
  redraw = draw;
  addEventListener("popstate", () => {
    clearTimeout(timer);
    timer = undefined;
    state = read();
    redraw();
  });
  addEventListener("pagehide", flush);
}

function read(): State {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(KEYS.map((key) => [key, given.get(key) ?? DEFAULTS[key]])) as State;
}

export function clearFilters(): void {
  go(Object.fromEntries(FILTERS.map((key) => [key, DEFAULTS[key]])));
}

/** Follow a link within the page, unless it is to open in another tab. */
export function follow(event: MouseEvent, change: Partial<State>): void {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(change);
}
