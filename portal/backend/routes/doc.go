// Package routes decides who may reach which app: origins, the hand-over to one
// of them, grants signed for one portal, and the news of what is over.
package routes
