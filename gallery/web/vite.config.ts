import { createHash } from "node:crypto";
import { defineConfig, type Plugin } from "vite";

// The folder of the page also holds the data, which the exporter writes. `file:` is for pages opened from disk, where
// 'self' matches nothing in some browsers.
const policy = (script: string, style: string) =>
  [
    "default-src 'none'",
    `script-src 'self' file: '${digest(script)}'`,
    `style-src '${digest(style)}'`,
    "img-src 'self' file: data:",
    "media-src 'self' file:",
    "base-uri 'none'",
    "form-action 'none'",
  ].join("; ");

const digest = (text: string) => `sha256-${createHash("sha256").update(text).digest("base64")}`;

/** Put script, style and the libraries' licenses into index.html: browsers load no modules from file:// addresses. */
function onePage(): Plugin {
  return {
    name: "one-page",
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        const take = (ending: string) => {
          const file = Object.values(bundle).find((each) => each.fileName.endsWith(ending));
          if (!file) throw new Error(`The build has no file *${ending}.`);
          delete bundle[file.fileName];
          return file.type === "chunk" ? file.code : String(file.source);
        };
        const script = take(".js").trim();
        const style = take(".css").trim();
        const licenses = take("licenses.md").trim();
        if (/<\/script|<!--/i.test(script)) throw new Error("The script holds text that would end its element.");
        if (licenses.includes("--")) throw new Error("The licenses hold text that would end a comment.");
        const page = bundle["index.html"];
        if (page?.type !== "asset") throw new Error("The build has no index.html.");
        page.source = String(page.source)
          .replace(/<script type="module".*?<\/script>/s, "")
          .replace(/<link rel="stylesheet".*?>/s, () => `<style>${style}</style>`)
          .replace(/(Content-Security-Policy" content=)""/, (_, start) => `${start}"${policy(script, style)}"`)
          .replace("<head>", () => `<!--\n${licenses}\n-->\n  <head>`)
          .replace("</body>", () => `<script>${script}</script>\n  </body>`);
      },
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [onePage()],
  build: {
    outDir: "../site",
    emptyOutDir: true,
    cssCodeSplit: false,
    modulePreload: false,
    license: { fileName: "licenses.md" },
    rolldownOptions: { output: { format: "iife" } },
  },
});
