() => {
    // Escape stops the answer, wherever the focus is, unless it closes something
    document.addEventListener("keydown", (event) => {
        const stop = document.querySelector("#message .stop-button");
        if (event.key === "Escape" && stop) stop.click();
    });
}
