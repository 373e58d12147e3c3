import { render } from "preact";
import { App } from "./App";
import { current, listen } from "./state";
import "./style.css";

const root = document.getElementById("page")!;
const gallery = window.PLLAVA_GALLERY;
root.replaceChildren();

if (!gallery) {
  render(
    <p class="alone">The data of this page, data/gallery.js, is missing or broken. Export the gallery again.</p>,
    root,
  );
} else if (gallery.version !== 1) {
  const version = JSON.stringify(gallery.version);
  render(<p class="alone">This page reads data of version 1; data/gallery.js has version {version}.</p>, root);
} else if (gallery.benchmarks.length === 0) {
  render(<p class="alone">This gallery has no results.</p>, root);
} else {
  const draw = () => render(<App gallery={gallery} state={current()} />, root);
  listen(draw);
  draw();
}
