// Browsers start no worker for a page that is opened from a file, and the search is one. Here its script runs in a
// hidden frame of the page instead.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = [] // messages for a script that is still being read
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside.importScripts = async (...urls) => {
        for (const each of urls) await this.load(new URL(each, url))
      }
      this.load(url).then(() => {
        this.waiting.forEach(data => this.receive(data))
        this.waiting = null
      })
    }

    load(url) {
      const script = this.inside.document.createElement("script")
      script.src = url
      this.inside.document.body.append(script)
      return new Promise(done => (script.onload = done))
    }

    receive(data) {
      this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }))
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.receive(data)
    }
  }
  window.Worker = window.IFrameWorker
}
