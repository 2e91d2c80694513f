// A page opened as a file may not read its neighbours, so the search shows titles there without a line of their text.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// A recorded panel says how high it is; its frame has a border of one pixel.
addEventListener("message", ({ source, data }) => {
  for (const frame of document.querySelectorAll(".recorded iframe"))
    if (frame.contentWindow === source && data?.kdLabHeight > 0) frame.style.height = `${data.kdLabHeight + 2}px`;
});
