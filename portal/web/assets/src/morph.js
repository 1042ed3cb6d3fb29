// Fragments are merged into the page, so that focus and open details stay.
import htmx from "htmx.org";
import { Idiomorph } from "idiomorph/dist/idiomorph.esm.js";

// What scripts keep up to date themselves has data-keep and stays as it is.
const kept = {
  beforeNodeMorphed: (old) => !(old.dataset && old.dataset.keep !== undefined),
  beforeAttributeUpdated: (name, node) => !(name === "open" && node.tagName === "DETAILS"),
};
htmx.defineExtension("morph", {
  isInlineSwap: (style) => style === "morph",
  handleSwap: (style, target, fragment) => {
    if (style !== "morph") return false;
    return Idiomorph.morph(target, fragment.children, { morphStyle: "outerHTML", callbacks: kept });
  },
});
