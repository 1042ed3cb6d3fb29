// Makes dist/ of src/ and of what package-lock.json names: one style sheet with
// only the rules that the templates use, the scripts, the icons they name, each
// under a name that changes with its content, and a manifest of those names.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync, constants } from "node:zlib";
import esbuild from "esbuild";
import { PurgeCSS } from "purgecss";

const here = dirname(fileURLToPath(import.meta.url));
const at = (...parts) => join(here, ...parts);
const dist = at("dist");
const manifest = {};

mkdirSync(dist, { recursive: true });
for (const name of readdirSync(dist)) if (name !== "README") rmSync(join(dist, name));

function write(name, content) {
  const data = Buffer.from(content);
  const hash = createHash("sha256").update(data).digest("hex").slice(0, 12);
  const dot = name.lastIndexOf(".");
  const hashed = `${name.slice(0, dot)}-${hash}${name.slice(dot)}`;
  writeFileSync(join(dist, hashed), data);
  writeFileSync(join(dist, `${hashed}.gz`), gzipSync(data, { level: constants.Z_BEST_COMPRESSION }));
  manifest[name] = hashed;
  console.log(`${hashed}  ${data.length}  (gz ${gzipSync(data).length})`);
}

const templates = readdirSync(at("../templates")).map((name) => at("../templates", name));
const scripts = readdirSync(at("src")).filter((name) => name.endsWith(".js")).map((name) => at("src", name));
const code = readdirSync(at("..")).filter((name) => name.endsWith(".go")).map((name) => at("..", name));

// Styles.
const sheets = ["node_modules/@tabler/core/dist/css/tabler.css", "node_modules/uplot/dist/uPlot.min.css", "src/app.css"];
const purged = await new PurgeCSS().purge({
  content: [...templates, ...scripts, ...code],
  css: sheets.map((name) => at(name)),
  safelist: { standard: [/^u-/, /^uplot/, /^htmx/, /^(is|was)-/], deep: [/^data-bs-theme/], variables: [/./] },
  dynamicAttributes: ["data-bs-theme", "open", "aria-current", "aria-selected", "type", "lang"],
});
const whole = (name) => name.includes("uplot"); // its script makes elements that no template names
const order = sheets.map((name) => whole(name) ? readFileSync(at(name), "utf8") : purged.find((one) => one.file === at(name)).css).join("\n");
const css = await esbuild.transform(order, { loader: "css", minify: true, legalComments: "none" });
for (const kept of ["a:focus-visible", "[hidden]"]) if (!css.code.includes(kept)) throw new Error(`the style sheet lost ${kept}`);
if (/url\(["']?https?:|@import/.test(css.code)) throw new Error("the style sheet loads something from outside");
write("app.css", css.code);

// Scripts.
for (const entry of ["app.js", "theme.js", "plots.js"]) {
  const built = await esbuild.build({
    entryPoints: [at("src", entry)], bundle: true, minify: true, write: false, format: "iife", target: "es2022", legalComments: "none",
  });
  write(entry, built.outputFiles[0].text);
}

// Icons: those that templates name.
const icons = {};
for (const file of [...templates, ...code]) {
  for (const [, name] of readFileSync(file, "utf8").matchAll(/icon "([a-z0-9-]+)"/g)) {
    const svg = readFileSync(at("node_modules/@tabler/icons/icons/outline", `${name}.svg`), "utf8");
    icons[name] = svg.replace(/^[\s\S]*?<svg[\s\S]*?>/, "").replace("</svg>", "").replace(/\s+/g, " ").trim();
  }
}
writeFileSync(join(dist, "icons.json"), JSON.stringify(icons));

for (const name of ["logo.svg"]) write(name, readFileSync(at("src", name)));
writeFileSync(join(dist, "manifest.json"), JSON.stringify(manifest, null, 1));
