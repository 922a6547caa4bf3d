"use strict";
const section = document.getElementById("view");
const open = document.getElementById("open");
const told = document.getElementById("told");
const run = (file) => new Promise((done, failed) => {
  const script = document.createElement("script");
  script.src = encodeURIComponent(file);
  script.onload = () => done();
  script.onerror = () => failed(new Error(`${file} is not beside this page`));
  document.head.append(script);
});
const rgb = (colour) => [1, 3, 5].map((n) => parseInt(colour.slice(n, n + 2), 16));
open.addEventListener("click", async () => {
  open.disabled = true;
  if (!document.createElement("canvas").getContext("webgl2")) {
    told.textContent = "This browser has no WebGL 2, which the 3-D view needs. The pictures above show the mask.";
    return;
  }
  try {
    told.textContent = "Reading ...";
    await run(section.dataset.viewer);
    await run(section.dataset.volumes);
    const mask = window.volumes.mask;
    const { MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } = window.niivue;
    const viewer = new Niivue({
      isRadiologicalConvention: true, multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID, isOrientationTextVisible: mask.sides, crosshairWidth: 0.5,
      loadingText: "", dragAndDropEnabled: false, logLevel: "error",
    });
    document.getElementById("viewer").hidden = false;
    await viewer.attachToCanvas(document.getElementById("canvas"));
    const volume = (key, nifti) => NVImage.loadFromBase64({ base64: nifti, name: `${key}.nii.gz` });
    const labels = await volume("mask", mask.nifti);
    const colours = [[0, 0, 0], ...mask.classes.map((one) => rgb(one.colour))];
    labels.setColormapLabel({
      R: colours.map((c) => c[0]), G: colours.map((c) => c[1]), B: colours.map((c) => c[2]),
      A: colours.map((_, n) => (n ? 255 : 0)), I: colours.map((_, n) => n),
      labels: ["", ...mask.classes.map((one) => one.name)],
    });
    for (const one of mask.classes) {
      const name = document.createElement("span");
      name.textContent = one.name;
      name.style.borderColor = one.colour;
      document.getElementById("legend").append(name);
    }
    const opacity = document.getElementById("opacity");
    const scan = document.getElementById("scan");
    scan.append(...mask.channels.map((one, n) => new Option(one.name, n, false, n === mask.shown)));
    const show = async () => {
      const { file } = mask.channels[Number(scan.value)];
      if (!window.volumes[file]) await run(file);
      for (const one of [...viewer.volumes]) viewer.removeVolume(one);
      viewer.addVolume(await volume("scan", window.volumes[file].nifti));
      viewer.addVolume(labels);
      viewer.setOpacity(1, Number(opacity.value));
    };
    const planes = document.getElementById("planes");
    const turn = () => viewer.setSliceType(SLICE_TYPE[planes.value]);
    scan.addEventListener("change", show);
    opacity.addEventListener("input", () => viewer.setOpacity(1, Number(opacity.value)));
    planes.addEventListener("change", turn);
    await show();
    turn();
    viewer.scene.crosshairPos = viewer.mm2frac(mask.centre_mm);
    viewer.drawScene();
    open.hidden = true;
    told.textContent = "";
    section.dataset.ready = "true";
  } catch (error) {
    told.textContent = `The 3-D view cannot be shown: ${error.message}`;
  }
});
