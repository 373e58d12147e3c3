import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Detail } from "./components/Detail";
import { Filters } from "./components/Filters";
import { Header } from "./components/Header";
import { Help } from "./components/Help";
import { List } from "./components/List";
import { Results } from "./components/Results";
import { useShortcuts } from "./keyboard";
import { select, VIEWS } from "./select";
import { address, flush, go, type State } from "./state";
import type { Gallery } from "./types";

const MESSAGE_TIME = 2500; // milliseconds

export function App({ gallery, state }: { gallery: Gallery; state: State }) {
  const benchmark = gallery.benchmarks.find((each) => each.name === state.benchmark) ?? gallery.benchmarks[0]!;
  const { sample: _sample, show: _show, pair: _pair, ...filters } = state;
  const selection = useMemo(() => select(benchmark, state), [benchmark, JSON.stringify(filters)]);
  const sample = benchmark.samples.find((each) => each.id === state.sample);
  const place = sample ? selection.shown.indexOf(sample) : -1;
  const [help, setHelp] = useState(false);
  const [message, setMessage] = useState("");
  const detail = useRef<HTMLElement>(null);

  useEffect(() => {
    document.title = sample ? `${sample.questions[0] ?? sample.id} · ${gallery.title}` : gallery.title;
  }, [sample, gallery]);

  useEffect(() => {
    detail.current?.scrollTo(0, 0);
  }, [sample, benchmark]);

  useEffect(() => {
    const timer = setTimeout(() => setMessage(""), MESSAGE_TIME);
    return () => clearTimeout(timer);
  }, [message]);

  const step = (by: number) => {
    const next = selection.shown[place < 0 ? 0 : place + by];
    if (next) go({ sample: next.id, show: "" }, sample ? "replace" : "push");
    return next !== undefined;
  };
  const copy = () => {
    flush();
    const copied = navigator.clipboard?.writeText(location.href) ?? Promise.reject(new Error("no clipboard"));
    copied.then(
      () => setMessage(sample ? "Link to this sample copied" : "Link to this view copied"),
      () => setMessage("The browser allows no copying here: take the link from the address bar"),
    );
    return true;
  };
  const close = () => {
    if (document.activeElement instanceof HTMLInputElement) document.activeElement.blur();
    else if (state.sample || state.show) go({ sample: "", show: "" });
    else return false;
    return true;
  };
  const view = (index: number) => {
    const name = VIEWS[index]!;
    if (name === "different" && benchmark.runs.length < 2) return false;
    go({ view: name, show: "" });
    return true;
  };
  useShortcuts((name) => {
    if (name === "next") return step(1);
    if (name === "previous") return step(-1);
    if (name === "search") return focus("#search");
    if (name === "play") return playOrPause();
    if (name === "copy") return copy();
    if (name === "results") return (go({ sample: "", show: "results" }), true);
    if (name === "close") return close();
    if (name === "help") return (setHelp(true), true);
    return view(Number(name.slice(-1)));
  });

  const open = state.sample ? "sample" : state.show === "results" ? "results" : "list";
  return (
    <div class="app" data-open={open}>
      <Header gallery={gallery} benchmark={benchmark} state={state} onHelp={() => setHelp(true)} onCopy={copy} />
      <div class="panes">
        <section class="samples" aria-label="Samples">
          <Filters benchmark={benchmark} state={state} selection={selection} />
          <List benchmark={benchmark} samples={selection.shown} place={place} state={state} />
        </section>
        <main class="detail" ref={detail}>
          {sample ? (
            <Detail
              key={`${benchmark.name} ${sample.id}`}
              gallery={gallery}
              benchmark={benchmark}
              sample={sample}
              place={place}
              count={selection.shown.length}
              onStep={step}
              onCopy={copy}
            />
          ) : state.sample ? (
            <p class="alone">
              This gallery has no sample {state.sample}. <a href={address({ sample: "" })}>Show the results</a>
            </p>
          ) : (
            <Results benchmark={benchmark} state={state} />
          )}
        </main>
      </div>
      <Help open={help} onClose={() => setHelp(false)} created={gallery.created} />
      <p class="message" role="status">
        {message}
      </p>
    </div>
  );
}

function focus(selector: string): boolean {
  const field = document.querySelector<HTMLInputElement>(selector);
  field?.focus();
  field?.select();
  return field !== null;
}

function playOrPause(): boolean {
  const video = document.querySelector("video");
  if (video?.paused)
    void video.play().catch(() => {}); // the element itself says why it cannot play
  else video?.pause();
  return video !== null;
}
