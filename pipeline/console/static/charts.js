// Draws what a page says with data-chart, in the colours of the theme; a table beside it says the same in words.
"use strict";
(() => {
  const drawn = [];
  // For the eye; the table has every digit.
  const rounded = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 4 });
  const draw = (element) => {
    const options = JSON.parse(element.dataset.chart);
    const chart = new ApexCharts(element, {
      ...options,
      chart: {
        background: "transparent",
        fontFamily: "inherit",
        toolbar: { show: false },
        animations: { enabled: false },
        ...options.chart,
        nonce: document.body.dataset.nonce,
      },
      yaxis: { ...options.yaxis, labels: { formatter: (value) => rounded.format(value) } },
      theme: { mode: document.documentElement.dataset.bsTheme },
    });
    chart.render();
    drawn.push(chart);
  };
  document.querySelectorAll("[data-chart]").forEach(draw);
  new MutationObserver(() => {
    const mode = document.documentElement.dataset.bsTheme;
    drawn.forEach((chart) => chart.updateOptions({ theme: { mode } }));
  }).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
})();
