// A page opened as a file may not read its own folder: say what to do instead of staying silent.
if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    document.body.dataset.state = "failed";
    document.getElementById("status").textContent =
      "Serve this folder to open it, for instance: python3 -m http.server, then http://localhost:8000/";
  });
}
